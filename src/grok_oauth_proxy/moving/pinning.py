"""Trust in one certificate: that with which the proxy of this machine was started."""

from __future__ import annotations

import ssl
from pathlib import Path

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
# X509_V_FLAG_PARTIAL_CHAIN: it need not have signed itself. X509_V_FLAG_NO_CHECK_TIME.
_AS_IT_IS, ANY_TIME = 0x80000, 0x200000


def pinned_context(certificate: Path) -> ssl.SSLContext:
    """A client's side of TLS that trusts the first certificate in this PEM file, and no other.

    Its names and its time do not matter: whoever has its key is who was meant. Raises `OSError` or
    `ValueError`.
    """
    text = certificate.read_text(encoding="ascii", errors="replace")
    start = text.index(_BEGIN)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=text[start : text.index(_END, start) + len(_END)] + "\n")
    context.verify_flags |= ssl.VerifyFlags(_AS_IT_IS | ANY_TIME)
    return context
