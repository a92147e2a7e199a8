"""What can be switched while the simulator runs. Every duration is in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

CHOICES: dict[str, tuple[str, ...]] = {
    "stale_style": ("401", "403-flat", "403-nested", "403-wke"),
    "device_approval": ("auto", "manual"),
    "authorize_outcome": ("approve", "deny", "bad-state"),
}


class ConfigError(ValueError):
    """A key or value that PATCH /_sim/config does not accept; `key` names it."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key


@dataclass
class Config:
    """The live configuration; one instance per process."""

    access_lifetime: float = 21600.0
    grace: float = 0.0  # the just-rotated refresh token gets the same successor for this long
    edge_lag: float = 0.0  # younger access tokens are refused: the edge learns late
    stale_style: str = "401"
    chunk_delay: float = 0.02
    device_approval: str = "auto"
    device_interval: float = 5.0
    device_expires_in: float = 1800.0
    authorize_outcome: str = "approve"
    token_delay: float = 0.0  # before a token request is processed
    omit_expires_in: bool = False
    omit_refresh_token: bool = False  # refreshes then keep the presented token alive
    omit_id_token: bool = False
    require_principal: bool = True  # team grants must name their principal when refreshing
    reject_oauth: str = ""  # a rejection kind for every request carrying an OAuth token
    deferred_polls: int = 1  # how many 202s come before a deferred result
    max_upload_bytes: int = 50 * 1024 * 1024
    api_keys: list[str] = field(default_factory=lambda: ["xai-sim-key"])

    def as_json(self) -> dict[str, object]:
        """Every key with its current value."""
        return asdict(self)

    def patch(self, changes: Mapping[str, object]) -> None:
        """Apply all of `changes` or none. Raises ConfigError for the first key that does not fit."""
        accepted = {key: self._coerce(key, value) for key, value in changes.items()}
        for key, value in accepted.items():
            setattr(self, key, value)

    def _coerce(self, key: str, value: object) -> object:
        if key not in self.as_json():
            raise ConfigError(key, "unknown key")
        current = getattr(self, key)
        if key in CHOICES and value not in CHOICES[key]:
            raise ConfigError(key, f"must be one of {', '.join(CHOICES[key])}")
        if isinstance(current, bool) or isinstance(value, bool):
            return _expect(key, value, isinstance(current, bool) and isinstance(value, bool))
        if isinstance(current, float):
            _expect(key, value, isinstance(value, int | float) and value >= 0)
            return float(str(value))
        if isinstance(current, list):
            return _expect(key, value, isinstance(value, list) and all(isinstance(v, str) for v in value))
        return _expect(key, value, type(value) is type(current))


def _expect(key: str, value: object, fits: bool) -> object:
    if not fits:
        raise ConfigError(key, f"{value!r} is of the wrong type or negative")
    return value
