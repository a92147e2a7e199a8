"""Which addresses may receive tokens."""

from __future__ import annotations

import pytest

from grok_oauth_proxy.origins import UntrustedOrigin, is_loopback, trusted_url

TRUSTED = [
    "https://x.ai",
    "https://api.x.ai/v1",
    "https://auth.x.ai/oauth2/token",
    "https://deeply.nested.x.ai",
    "https://api.x.ai:443/v1",
    "https://API.X.AI/v1",
    "HTTPS://api.x.ai/v1",
    "https://api.x.ai./v1",
]

UNTRUSTED = {
    "plain-http": "http://x.ai",
    "plain-http-below": "http://auth.x.ai/oauth2/token",
    "suffix-of-another": "https://x.ai.evil.com",
    "ending-alike": "https://evilx.ai",
    "ending-alike-with-dash": "https://evil-x.ai",
    "user-before-host": "https://x.ai@evil.com",
    "user-and-password": "https://api.x.ai:443@evil.com/",
    "user-of-ours": "https://someone@api.x.ai/",
    "empty-user": "https://@api.x.ai/",
    "slash-in-password": "https://evil.com/@api.x.ai",
    "backslash": "https://evil.com\\.x.ai",
    "backslash-at": "https://evil.com\\@api.x.ai",
    "fragment-hides-host": "https://evil.com#.x.ai",
    "query-hides-host": "https://evil.com?.x.ai",
    "query": "https://api.x.ai/v1?key=1",
    "fragment": "https://api.x.ai/v1#part",
    "leading-blank": " https://api.x.ai",
    "trailing-newline": "https://api.x.ai\n",
    "tab-inside": "https://api.x\t.ai",
    "null-inside": "https://evil.com\x00.x.ai",
    "carriage-return": "https://api.x.ai\r\nhost: evil.com",
    "port-too-large": "https://api.x.ai:65536",
    "port-not-a-number": "https://api.x.ai:https",
    "port-negative": "https://api.x.ai:-1",
    "port-then-host": "https://evil.com:443.x.ai",
    "cyrillic-letter": "https://\u0445.ai",
    "fullwidth-dot": "https://x\uff0eai",
    "fullwidth-slash": "https://evil.com\uff0f.x.ai",
    "dotless-i": "https://x.a\u0131",
    "punycode-alike": "https://xn--x-7sb.ai",
    "no-scheme": "api.x.ai",
    "scheme-relative": "//api.x.ai",
    "one-slash": "https:/api.x.ai",
    "no-host": "https://",
    "another-scheme": "ftp://api.x.ai",
    "websocket": "wss://api.x.ai",
    "javascript": "javascript:alert(1)//x.ai",
    "broken-brackets": "https://[api.x.ai",
    "ipv6-literal": "https://[::1]",
    "loopback-https": "https://127.0.0.1/v1",
    "loopback-http": "http://localhost:8000/v1",
    "empty": "",
}

LOOPBACK = ["http://127.0.0.1:8000", "http://localhost:1/v1", "http://[::1]:8000/v1", "https://127.9.9.9"]
NOT_LOOPBACK = [
    "http://127.0.0.1.evil.com",
    "http://localhost.evil.com",
    "http://localhost@evil.com",
    "http://evil.com:80",
    "http://0.0.0.0:80",
    "http://10.0.0.1",
    "http://127.0.0.1:70000",
    "http://127.1",
    "ftp://127.0.0.1",
    "http://api.x.ai",
]


@pytest.mark.parametrize("url", TRUSTED)
@pytest.mark.parametrize("allow_loopback", [False, True])
def test_trusted(url: str, allow_loopback: bool) -> None:
    """https on x.ai and below it is trusted however it is written, and comes back as it was."""
    assert trusted_url(url, allow_loopback=allow_loopback) == url


@pytest.mark.parametrize("url", UNTRUSTED.values(), ids=UNTRUSTED.keys())
def test_untrusted(url: str) -> None:
    """Everything else is refused, whatever it does to look like x.ai."""
    with pytest.raises(UntrustedOrigin):
        trusted_url(url, allow_loopback=False)


@pytest.mark.parametrize("url", LOOPBACK)
def test_loopback_on_request(url: str) -> None:
    """Loopback, plain http included, is trusted when that was asked for, and only then."""
    assert trusted_url(url, allow_loopback=True) == url
    with pytest.raises(UntrustedOrigin):
        trusted_url(url, allow_loopback=False)


@pytest.mark.parametrize("url", NOT_LOOPBACK)
def test_loopback_does_not_widen(url: str) -> None:
    """Allowing loopback allows nothing that only resembles it."""
    with pytest.raises(UntrustedOrigin):
        trusted_url(url, allow_loopback=True)


@pytest.mark.parametrize("url", ["https://api.x.ai/v1/", "https://api.x.ai/v1///"])
def test_no_trailing_slash(url: str) -> None:
    """Paths can be appended to what is returned."""
    assert trusted_url(url, allow_loopback=False) == "https://api.x.ai/v1"


def test_the_reason_keeps_the_secret() -> None:
    """The refusal does not repeat a password that stood in the address."""
    with pytest.raises(UntrustedOrigin) as caught:
        trusted_url("https://me:canary-password@api.x.ai", allow_loopback=False)
    assert "canary" not in str(caught.value)
    assert "credentials" in str(caught.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LocalHost.", True),
        ("page.localhost", True),
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("[::1]", True),
        ("0:0:0:0:0:0:0:1", True),
        ("localhost.evil.com", False),
        ("notlocalhost", False),
        ("127.0.0.1.evil.com", False),
        ("128.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("2130706433", False),
        ("127.1", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    """Only names and addresses that cannot leave this machine count as loopback."""
    assert is_loopback(host) is expected
