"""The certificate and the key that the proxy shows its clients: checked before anybody sees them."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path
from typing import Final, NoReturn

from grok_oauth_proxy.errors import StartRefused
from grok_oauth_proxy.moving.pinning import ANY_TIME, pinned_context
from grok_oauth_proxy.settings import Settings

_ALPN: Final = ["http/1.1"]
_ROOT: Final = (0, 65534)
"""The second as a unit of a user's own manager sees root: PrivateUsers= leaves that user alone a number."""
_OUT_OF_TIME: Final = {9: "is not valid yet", 10: "has expired"}
"""By OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """The server's side of TLS, 1.2 or later, HTTP/1.1 alone; None where the settings name no certificate.

    Raises `StartRefused` when certificate or key cannot be used.
    """
    if settings.proxy_tls_cert is None or settings.proxy_tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_ALPN)
    _load(context, settings.proxy_tls_cert, settings.proxy_tls_key)
    return context


def reload_certificate(context: ssl.SSLContext, settings: Settings) -> None:
    """Read both files again: handshakes from now on show what they hold.

    Raises `StartRefused`; then those of before are shown on.
    """
    if server_context(settings) is None:  # a trial: a context that took half of them is of no use
        return
    assert settings.proxy_tls_cert is not None  # noqa: S101 - for the type checker
    assert settings.proxy_tls_key is not None  # noqa: S101 - for the type checker
    _load(context, settings.proxy_tls_cert, settings.proxy_tls_key)


def out_of_time(context: ssl.SSLContext, certificate: Path) -> str | None:
    """What clients will say against the time of the certificate that `context` shows, or None.

    Found by a handshake in memory: Python reads no certificate but that of a peer.
    """
    client = pinned_context(certificate)
    client.verify_flags &= ~ssl.VerifyFlags(ANY_TIME)
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = client.wrap_bio(theirs, ours), context.wrap_bio(ours, theirs, server_side=True)
    try:
        for side in sides * 2:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except ssl.SSLCertVerificationError as error:
        return _OUT_OF_TIME.get(error.verify_code)
    return None


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for name, path in (("PROXY_TLS_CERT", certificate), ("PROXY_TLS_KEY", key)):
        try:
            # Opening a pipe in its place would wait for its writer for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _refused(f"{name} {path} cannot be read: {error.strerror}.") from None
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        os.close(descriptor)
        if not regular:
            raise _refused(f"{name} {path} is not a regular file.")
    _check_mode(key)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _refused(
                f"PROXY_TLS_KEY {key} is not the key of the certificate in {certificate}."
            ) from None
        raise _refused(
            f"PROXY_TLS_CERT {certificate} and PROXY_TLS_KEY {key} cannot be used: they must be PEM files, "
            f"of a certificate with those that lead to its issuer, and of its key ({error.reason or 'PEM'})."
        ) from None


def _check_mode(key: Path) -> None:
    """As PostgreSQL has it: nobody else may read it, but a group where the file is root's."""
    found = key.stat()
    others = stat.S_IRWXO | (stat.S_IWGRP | stat.S_IXGRP if found.st_uid in _ROOT else stat.S_IRWXG)
    if found.st_mode & others:
        raise _refused(f"PROXY_TLS_KEY {key} can be read by others. Correct it with: chmod 600 {key}")


def _no_password() -> NoReturn:
    raise _refused(
        "PROXY_TLS_KEY is encrypted, and nobody is there to ask. Take off its passphrase with `openssl pkey "
        "-in OLD -out NEW`, and keep the file to yourself."
    )


def _refused(why: str) -> StartRefused:
    return StartRefused(why, code="bad_certificate")
