"""The named keys that clients of this proxy send: one file, which holds their digests and never a key.

Law: once there is a file, keys are demanded, and an empty list lets nobody in: taking the last key away must
not open the proxy. Only removing the file does, and a new start. A key is 256 random bits, so that its
SHA-256 needs neither salt nor slowness: there is nothing to guess it from, and no two are alike.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from grok_oauth_proxy.credentials.files import locked, make_private, read_json, stamp, write_json
from grok_oauth_proxy.errors import ProxyError, StoreProblem

PREFIX: Final = "gop_"
_RANDOM_BYTES: Final = 32
KEY_LENGTH: Final = len(PREFIX) + 43
"""Characters: 32 bytes are 43 in Base64 without padding."""
MOST_KEYS: Final = 200
"""Each has metrics of its own."""
LIMITS: Final = {"requests_per_minute": 60_000, "concurrent": 1_000_000}
"""The highest that each may be."""
NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

_VERSION: Final = 1
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NEEDED: Final = {"name", "sha256", "added_at"}

Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A key by its name; `added_at` is ISO 8601 in UTC, a limit that is None does not exist."""

    name: str
    digest: bytes = field(repr=False)
    added_at: str
    requests_per_minute: int | None = None
    concurrent: int | None = None


def digest_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


@dataclass(frozen=True, slots=True)
class KeysFile:
    """keys.json: mode 0600, replaced whole. What goes wrong with it is a `StoreProblem`."""

    path: Path

    def stamp(self) -> Stamp:
        """What changes whenever the file is written; None without one. A link to nothing counts as one."""
        return stamp(self.path) or ((0, 0, 0) if os.path.islink(self.path) else None)  # noqa: PTH114 - it never raises

    def load(self) -> tuple[ClientKey, ...]:
        """The keys. Raises `StoreProblem`: missing, unreadable, unsafe_link or corrupt."""
        try:
            return _decode(read_json(self.path))
        except (AttributeError, KeyError, TypeError, ValueError):
            problem = "it is not of the shape that `grok-oauth-proxy keys` writes"
        except StoreProblem as found:
            if found.code != "corrupt":
                raise
            problem = "it is not a JSON object"
        raise StoreProblem(
            f"{self.path} is damaged: {problem}. Correct it; or remove it and make new keys with "
            "`grok-oauth-proxy keys add NAME`.",
            code="corrupt",
        )

    def make_private(self) -> str | None:
        """Close the file to other users; says so when it was open. Raises `StoreProblem` where that fails.

        Who may write it could let himself in.
        """
        try:
            if make_private(self.path):
                return f"{self.path} was open to other users and is now private."
            found = self.path.stat()
        except FileNotFoundError:
            raise StoreProblem(
                f"{self.path} is not there. Put it back, or make new keys with `grok-oauth-proxy keys add "
                "NAME`.",
                code="missing",
            ) from None
        except OSError as error:
            raise StoreProblem(
                f"{self.path} cannot be used: {error.strerror}. Make it readable for this user.",
                code="unreadable",
            ) from None
        if found.st_uid not in (os.geteuid(), 0):
            raise StoreProblem(
                f"{self.path} belongs to another user, so it is not used. Make it your own, or remove it.",
                code="exposed",
            )
        if found.st_mode & 0o022:
            raise StoreProblem(
                f"Other users may write {self.path}, so it is not used. Its owner must run chmod 600 on it.",
                code="exposed",
            )
        return None

    async def add(self, name: str, *, requests_per_minute: int | None, concurrent: int | None) -> SecretStr:
        """Make a key and note it; this is the only time that it is known. Raises `ProxyError`."""
        key = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        added = ClientKey(name, digest_of(key.encode()), now, requests_per_minute, concurrent)

        def extended(keys: tuple[ClientKey, ...]) -> tuple[ClientKey, ...]:
            if any(name == other.name for other in keys):
                raise ProxyError(
                    f"There is a key {name} already. Choose another name, or revoke that one first.",
                    code="key_exists",
                )
            if len(keys) >= MOST_KEYS:
                raise ProxyError(
                    f"There are {MOST_KEYS} keys, and no more fit in. Revoke one that is not used any more.",
                    code="too_many_keys",
                )
            return (*keys, added)

        await self._change(extended)
        return SecretStr(key)

    async def revoke(self, name: str) -> int:
        """Take a key away; how many are left. Raises `ProxyError`."""

        def reduced(keys: tuple[ClientKey, ...]) -> tuple[ClientKey, ...]:
            left = tuple(key for key in keys if key.name != name)
            if len(left) == len(keys):
                raise ProxyError(
                    f"There is no key {name} in {self.path}. `grok-oauth-proxy keys list` shows the names.",
                    code="no_such_key",
                )
            return left

        return len(await self._change(reduced))

    async def _change(
        self, change: Callable[[tuple[ClientKey, ...]], tuple[ClientKey, ...]]
    ) -> tuple[ClientKey, ...]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            async with locked((self.path.with_name(self.path.name + ".lock"),)):
                there = self.stamp() is not None
                if there:
                    self.make_private()
                keys = change(self.load() if there else ())
                write_json(self.path, _encode(keys))
        except OSError as error:
            raise StoreProblem(
                f"{self.path} cannot be written: {error.strerror}. Nothing was changed. Make its folder "
                "writable, free some space.",
                code="unwritable",
            ) from None
        return keys


def _encode(keys: tuple[ClientKey, ...]) -> dict[str, Any]:
    return {"version": _VERSION, "keys": [_encode_key(key) for key in keys]}


def _encode_key(key: ClientKey) -> dict[str, Any]:
    limits = {name: limit for name in LIMITS if (limit := getattr(key, name)) is not None}
    return {"name": key.name, "sha256": key.digest.hex(), "added_at": key.added_at, **limits}


def _decode(content: dict[str, Any]) -> tuple[ClientKey, ...]:
    if content["version"] != _VERSION or content.keys() != {"version", "keys"}:
        raise ValueError("unknown version")
    keys = tuple(_decode_key(item) for item in content["keys"])
    names, digests = {key.name for key in keys}, {key.digest for key in keys}
    if not len(names) == len(digests) == len(keys) <= MOST_KEYS:
        raise ValueError("two of one name, or too many")
    return keys


def _decode_key(item: dict[str, Any]) -> ClientKey:
    """A field that is not known may be a limit that was misspelt, or one that would be left out here."""
    if not _NEEDED <= item.keys() <= _NEEDED | LIMITS.keys():
        raise ValueError("unknown fields")
    if not (NAME.fullmatch(item["name"]) and _DIGEST.fullmatch(item["sha256"])):
        raise ValueError("no name or digest")
    datetime.fromisoformat(item["added_at"])
    limits = {name: item[name] for name in LIMITS if name in item}
    for name, limit in limits.items():
        if type(limit) is not int or not 1 <= limit <= LIMITS[name]:
            raise ValueError("no limit")
    return ClientKey(item["name"], bytes.fromhex(item["sha256"]), item["added_at"], **limits)
