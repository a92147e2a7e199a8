"""Every refusal the API is known to give, byte for byte the same each time it is asked for."""

from __future__ import annotations

from grok_oauth_proxy.sim.reply import Reply, encode

NOT_VALIDATED = "The OAuth2 access token could not be validated."
BAD_CREDENTIALS = "unauthenticated:bad-credentials"
NO_PERMISSION = "The caller does not have permission to execute the specified operation"
STALE_KINDS = ("stale-401", "stale-403-flat", "stale-403-nested", "stale-403-wke")


def flat(status: int, code: str, error: str) -> Reply:
    """The commonest shape: {"code", "error"}."""
    return Reply.json({"code": code, "error": error}, status)


def nested(status: int, code: str, message: str, kind: str = "invalid_request_error") -> Reply:
    """The OpenAI shape: {"error": {"message", "type", "code", "param"}}."""
    return Reply.json({"error": {"message": message, "type": kind, "code": code, "param": None}}, status)


def plain(status: int, text: str) -> Reply:
    """A text/plain refusal, as the router gives for 400, 404, 405, 415 and 422."""
    return Reply(status, text.encode(), "text/plain; charset=utf-8")


def cloudflare_page(status: int) -> bytes:
    """What stands between a client and the origin when Cloudflare answers in its place."""
    title = f"api.x.ai | {status}"
    return (
        f"<!DOCTYPE html>\n<html><head><title>{title}</title></head>\n"
        f'<body><div id="cf-error-details"><h1>Error {status}</h1>'
        "<p>Ray ID: 8f2c5a1b7d3e4f60 &bull; Performance &amp; security by Cloudflare</p>"
        "</div></body></html>\n"
    ).encode()


def cloudflare(status: int) -> Reply:
    """A Cloudflare error page."""
    return Reply(
        status, cloudflare_page(status), "text/html; charset=UTF-8", ((b"cf-ray", b"8f2c5a1b7d3e4f60"),)
    )


KINDS: dict[str, Reply] = {
    "stale-401": flat(401, BAD_CREDENTIALS, NOT_VALIDATED),
    "no-credentials": Reply.json({"error": "no-credentials: send Authorization: Bearer with a token"}, 401),
    "stale-403-flat": flat(403, BAD_CREDENTIALS, NOT_VALIDATED),
    "stale-403-nested": nested(403, BAD_CREDENTIALS, NOT_VALIDATED),
    "stale-403-wke": flat(403, NO_PERMISSION, f"{NOT_VALIDATED} [WKE={BAD_CREDENTIALS}]"),
    "entitlement": flat(
        403,
        NO_PERMISSION,
        "You have either run out of available resources or do not have an active Grok subscription. "
        "Manage subscriptions at https://grok.com",
    ),
    "spending-limit": flat(
        403, "personal-team-blocked:spending-limit", "The team has reached its monthly spending limit."
    ),
    "permission-denied": flat(
        403, "permission-denied", "Your team does not have permission to use the model grok-4-heavy."
    ),
    "content": flat(
        403, NO_PERMISSION, "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_SIMULATED"
    ),
    "quota-402": flat(402, "personal-team-blocked:spending-limit", "The prepaid credit is used up."),
    "quota-429": flat(
        429,
        "subscription:free-usage-exhausted",
        "The included usage is exhausted. It comes back over a rolling 24 hours.",
    ),
    "rate-429": flat(429, "Some resource has been exhausted", "Too many requests for the team; slow down."),
    "bare-string": Reply(400, encode("The request could not be understood.")),
    "plain-text": plain(400, "Failed to deserialize the JSON body into the target type"),
    "cloudflare-html": cloudflare(502),
}


def rejection(kind: str, status: int | None = None) -> Reply:
    """The refusal called `kind`; `status` replaces its own. Raises KeyError for an unknown kind."""
    reply = KINDS[kind]
    if status is None or status == reply.status:
        return reply
    if kind == "cloudflare-html":
        return cloudflare(status)
    return Reply(status, reply.body, reply.content_type, reply.headers)


def stale(style: str) -> Reply:
    """What a token the edge does not know gets; `style` as in the config."""
    return KINDS[f"stale-{style}"]
