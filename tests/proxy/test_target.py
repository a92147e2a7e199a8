"""From the path a client asked for to the path the API is asked for."""

from __future__ import annotations

import pytest

from grok_oauth_proxy.errors import ClientError
from grok_oauth_proxy.proxy.target import is_api_path, outside_api, upstream_target

TARGETS = [
    b"/v1/models",
    b"/v1",
    b"/v1/",
    b"/v1/chat/completions",
    b"/v1/batches/b1:cancel",
    b"/v1/responses/a%2Fb",
    b"/v1/responses/a%2fb%20c",
    b"/v1/files/%E2%82%AC",
    b"/v1/files/%zz%",
    b"/v1//models",
    b"/v1/models/",
    b"/v1/a;b=c",
    b"/v1/a..b/..c/d...",
    b"/v1/...",
    b"/v1/%252e%252e/x",
    b"/v1/models?",
    b"/v1/models?a=1&b=%20+&c",
    b"/v1/models?next=/v1/../x",
    b"/v1/models???",
    b"/v1?next=/v1/x",
    b"/v1/v10/x",
    b"/v1/./x",
    b"/v1/%2e/x",
    b"/v1/a/..",
    b"/v1/a/../x",
    b"/v1/a/%2E%2e/b",
    b"/v1/a/b/..%2f..",
    b"/v1/a/b/..\\x",
    b"/v1/f/\xc3\xbc?\xff",
]


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_target(target: bytes) -> None:
    """The path and query arrive byte for byte, percent signs, colons and a bare question mark included."""
    assert upstream_target(target, b"/v1") == target


@pytest.mark.parametrize(
    ("base", "target"),
    [(b"", b"/models?a"), (b"/v1", b"/v1/models?a"), (b"/eu/v2", b"/eu/v2/models?a")],
)
def test_base_path(base: bytes, target: bytes) -> None:
    """The path of XAI_BASE_URL takes the place of /v1."""
    assert upstream_target(b"/v1/models?a", base) == target


@pytest.mark.parametrize(("asked", "target"), [(b"/v1", b"/"), (b"/v1?q", b"/?q"), (b"/v1/?q", b"/?q")])
def test_root(asked: bytes, target: bytes) -> None:
    """A target is never empty."""
    assert upstream_target(asked, b"") == target


@pytest.mark.parametrize("path", [b"/v1/v1", b"/v1/v1?q", b"/v1/v1/", b"/v1/v1/models", b"/v1/v1/v1"])
def test_doubled_prefix(path: bytes) -> None:
    """A doubled prefix is a mistake in the client's settings, and is told as that."""
    with pytest.raises(ClientError) as caught:
        upstream_target(path, b"/v1")
    assert (caught.value.code, caught.value.status) == ("doubled_prefix", 404)


DOTS = [
    b"/v1/..",
    b"/v1/..?q",
    b"/v1/../x",
    b"/v1/a/../../x",
    b"/v1/a/../..",
    b"/v1/a/./../../x",
    b"/v1/a//../../x",
    b"/v1/a/../../v1/x",
    b"/v1/%2e%2e/x",
    b"/v1/%2E./x",
    b"/v1/.%2e/x",
    b"/v1/a%2f..%2fx",
    b"/v1/a%2fb/../../x",
    b"/v1/a\\b/../../x",
    b"/v1/..%2Fx",
    b"/v1/..\\x",
    b"/v1/%2e%2e%5cx",
    b"/v1/a\\..\\x",
    b"/v1/..;/x",
    b"/v1/..;a=b/x",
    b"/v1/;/../x",
    b"/v1/%2e%2e%3bx/y",
]


@pytest.mark.parametrize("path", DOTS, ids=repr)
def test_dot_segments(path: bytes) -> None:
    """A path that some server could take for one outside the API is refused, however it is written."""
    with pytest.raises(ClientError) as caught:
        upstream_target(path, b"/v1")
    assert (caught.value.code, caught.value.status) == ("bad_path", 400)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/v1", True),
        (b"/v1/", True),
        (b"/v1/models", True),
        (b"/v10", False),
        (b"/v1x", False),
        (b"/V1/models", False),
        (b"/", False),
        (b"", False),
        (b"v1/models", False),
        (b"//v1/models", False),
        (b"/%76%31/models", False),
        (b"http://evil.com/v1/models", False),
    ],
    ids=repr,
)
def test_is_api_path(path: bytes, expected: bool) -> None:
    """Only /v1 itself and what lies below it is the API, byte by byte."""
    assert is_api_path(path) is expected


@pytest.mark.parametrize(
    ("path", "hint"), [("/", False), ("/chat/completions", True), ("/v2/models", True), ("/v1x", True)]
)
def test_outside(path: str, hint: bool) -> None:
    """Outside the API there is a 404 that tells where it is, to those who look for it."""
    error = outside_api(path)
    assert error.status == 404
    assert ("base URL must end in /v1" in error.message) is hint
