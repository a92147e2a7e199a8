"""What this shell sets and a service would not see: it is added to the settings file, secrets included.

Law: values go into that file, of mode 0600, and nowhere else; names alone are shown.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from grok_oauth_proxy.errors import ConfigurationError
from grok_oauth_proxy.settings import Settings, given_settings
from grok_oauth_proxy.settings_file import name_in, read_settings_file

_PATHS: Final = {"SSL_CERT_FILE"} | {
    name.upper() for name, field in Settings.model_fields.items() if field.annotation in (Path, Path | None)
}


def to_carry(path: Path) -> dict[str, str]:
    """Settings of this environment that the settings file at `path` does not have, or has otherwise.

    Paths are absolute: a service does not run in this folder.
    """
    said = read_settings_file(path)
    given = {name: _seen_from_anywhere(name, value) for name, value in given_settings().items()}
    return {name: value for name, value in given.items() if said.get(name) != value}


def _seen_from_anywhere(name: str, value: str) -> str:
    return str(Path(value).absolute()) if name in _PATHS and value[0] not in "~/" else value


def carry(path: Path, values: Mapping[str, str]) -> None:
    """Write them into the file, in the place of lines that say otherwise. Raises `ConfigurationError`."""
    if not values:
        return
    added = "".join(f"{name}={_written(name, value)}\n" for name, value in values.items())
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        before = target.read_text("utf-8-sig") if target.exists() else ""
        kept = "".join(f"{line}\n" for line in before.splitlines() if name_in(line) not in values)
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write((kept + added).encode())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}. Make it writable.") from None


def _written(name: str, value: str) -> str:
    """The value as the settings file has it, in quotes where it needs them."""
    if not any(character in value for character in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"):
        if value == value.strip() and value[0] not in "\"'":
            return value
        for quote in "\"'":
            if quote not in value:
                return f"{quote}{value}{quote}"
    raise ConfigurationError(
        f"{name} cannot stand in the settings file as it is. Unset it, or write it there."
    )
