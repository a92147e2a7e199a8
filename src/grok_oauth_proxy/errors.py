"""Every error this program can show a person: whose fault it is, and what to do next.

The message of a `ProxyError` is safe to print, log and send: it never holds a token, a key, a body or a
query string, and it ends with the next step.
"""

from __future__ import annotations

from typing import ClassVar


class ProxyError(Exception):
    """Base of all errors with a meaning outside the code.

    `status` is the HTTP status a client sees, `exit_code` what the command line ends with, `code` the
    machine-readable reason, `retry_after` whole seconds until trying again makes sense (None: unknown).
    """

    kind: ClassVar[str] = "api_error"
    exit_code: ClassVar[int] = 1
    status: int = 500

    def __init__(
        self, message: str, *, code: str, status: int | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status or self.status
        self.retry_after = retry_after


class ConfigurationError(ProxyError):
    """A setting has a bad value or a misspelt name."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message, code="bad_configuration")


class StartRefused(ProxyError):
    """The daemon may not start like this. Exit code 3 tells a supervisor that trying again is useless."""

    exit_code = 3


class StoreProblem(ProxyError):
    """A credential file is missing, unreadable, damaged or without tokens; `code` says which."""

    exit_code = 3
    status = 503


class ClientError(ProxyError):
    """The request itself is at fault."""

    kind = "invalid_request_error"
    status = 400


class CredentialsUnavailable(ProxyError):
    """There is no access token to send; `code` says why."""

    kind = "authentication_error"
    status = 503


class SignInFailed(ProxyError):
    """A login could not be made or ended; `code` says why."""


class UpstreamUnavailable(ProxyError):
    """The API could not be reached or broke off before it answered."""

    status = 502
