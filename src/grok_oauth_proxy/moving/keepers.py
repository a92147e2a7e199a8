"""Who keeps a login on this machine: Hermes' store, or the proxy's own file. Both do the same four things.

Law: every method but `relation` wants the keeper's lock; whatever is written is on the disk when it returns;
a link that the bookkeeping knows to be spent is never given out, its successor is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from grok_oauth_proxy.moving import hermes
from grok_oauth_proxy.moving.books import Books, own_login, read_books
from grok_oauth_proxy.moving.claims import client_id as claimed_client_id
from grok_oauth_proxy.moving.claims import fingerprint
from grok_oauth_proxy.moving.document import Document, is_trusted
from grok_oauth_proxy.moving.files import Json, read_json, set_aside, write_json, write_numbered
from grok_oauth_proxy.moving.problems import Damaged, NoLogin, Problem
from grok_oauth_proxy.moving.surroundings import Surroundings

HERE, SPENT, DEAD = "here", "spent", "dead"

_IN_DOUBT = (
    "The answer to the last refresh of this login was lost, so its refresh token may be spent. Let the proxy "
    "settle that first (start it, ask it something), or sign in again; then export."
)
_ALL_SPENT = (
    "{place} holds a refresh token that has been spent, and its successor is not here. Sign in again."
)
_ROOT_HAS_IT = (
    "The root store {path} holds this very login, and the profile uses it from there. Nothing was changed."
)
_SIGN_IN = "Sign in with `hermes auth add xai-oauth`, or with `grok-oauth-proxy login`."
_REFUSED = "The authorization server has refused the login in {place} ({error}). Sign in again, then export."


class Keeper(Protocol):
    """See `HermesKeeper`."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def path(self) -> Path: ...
    def locks(self) -> tuple[Path, ...]: ...
    def books(self) -> Books: ...
    def living(self) -> Document: ...
    def relation(self, document: Document) -> str | None: ...
    def put(self, document: Document) -> Path | None: ...
    def forget_stale(self) -> Path | None: ...
    def take_out(self, document: Document) -> None: ...


@dataclass(frozen=True)
class HermesKeeper:
    """Hermes' store, with auth_state.json as its bookkeeping."""

    surroundings: Surroundings

    @property
    def name(self) -> str:
        return "Hermes"

    @property
    def source(self) -> str:
        """As /health calls it."""
        return "hermes"

    @property
    def path(self) -> Path:
        """Where a login is written; a profile falls back to the root store for reading."""
        return self.surroundings.hermes_stores[0]

    def locks(self) -> tuple[Path, ...]:
        """Hermes' own lock of each store, the profile's first: the order Hermes takes them in."""
        stores = self.surroundings.hermes_stores
        return tuple(path.with_name("auth.lock") for path in stores if path.parent.is_dir())

    def books(self) -> Books:
        return read_books(self.surroundings.state)

    def living(self) -> Document:
        """The login in use here; raise `Problem`, `NoLogin` when none lives."""
        books = self.books()
        for path in self.surroundings.hermes_stores:
            store = read_json(path) or {}
            if stored := hermes.logins(store):
                endpoint = hermes.token_endpoint(store)
                return _living(stored, books, self.surroundings, endpoint, path)
        cause = "holds no xAI login" if self.path.exists() else "does not exist"
        raise NoLogin(f"{self.path} {cause}. {_SIGN_IN}")

    def relation(self, document: Document) -> str | None:
        """What is known here of this login: HERE, SPENT, DEAD or nothing. Raises `Problem`."""
        stores = [read_json(path) or {} for path in self.surroundings.hermes_stores]
        links = [_link(tokens) for store in stores for tokens in hermes.logins(store)]
        books = _known(self.surroundings.state)
        return _relation(document, books, {books.newest(link) for link in links})

    def put(self, document: Document) -> Path | None:
        """Write it; return the file that a different login which stood there is kept in, if one lived."""
        books, link = _known(self.surroundings.state), document.fingerprint
        for root in self.surroundings.hermes_stores[1:]:
            if link in {books.newest(_link(tokens)) for tokens in hermes.logins(read_json(root) or {})}:
                raise Problem(_ROOT_HAS_IT.format(path=root))
        store = read_json(self.path)
        before = hermes.block_login(store) if store else None
        store = hermes.new_store() if store is None else store
        # A second place in the pool would be a second owner to Hermes.
        hermes.take_out(store, lambda found: books.newest(found) == link, hermes.IMPORTED)
        hermes.put(store, document, self.path)
        kept = _keep(before, document, books, self.surroundings, self.path)
        _write(self.path, store, kept)
        return kept

    def forget_stale(self) -> Path | None:
        """Take a login that no store leads to out of the bookkeeping; return where a damaged one is kept."""
        path = self.surroundings.state
        try:
            books = read_books(path)
        except Damaged:
            return set_aside(path)
        stores = [read_json(store) or {} for store in self.surroundings.hermes_stores]
        links = {_link(tokens) for store in stores for tokens in hermes.logins(store)}
        if books.tokens and books.link not in {books.newest(link) for link in links}:
            write_json(path, books.without_login())
        return None

    def take_out(self, document: Document) -> None:
        """Remove this login; raise `Problem`, and remove nothing, when it is no longer the same link."""
        books, link = self.books(), document.fingerprint
        emptied = 0
        for path in self.surroundings.hermes_stores:
            store = read_json(path)
            if store is None:
                continue
            if places := hermes.take_out(store, lambda found: books.newest(found) == link, hermes.MOVED):
                write_json(path, store)
                emptied += places
        if not emptied:
            raise _rotated(self.path)
        if books.link == link:
            write_json(self.surroundings.state, books.without_login())


@dataclass(frozen=True)
class OwnKeeper:
    """login.json: store and bookkeeping in one, nobody else's affair."""

    surroundings: Surroundings

    @property
    def name(self) -> str:
        return "the proxy itself"

    @property
    def source(self) -> str:
        return "own"

    @property
    def path(self) -> Path:
        return self.surroundings.own

    def locks(self) -> tuple[Path, ...]:
        lock = self.path.with_name("login.lock")
        return (lock,) if lock.parent.is_dir() else ()

    def books(self) -> Books:
        return read_books(self.path)

    def living(self) -> Document:
        books = self.books()
        if books.tokens is None:
            raise NoLogin(f"{self.path} holds no login. Sign in with `grok-oauth-proxy login`.")
        return _living([books.tokens], books, self.surroundings, None, self.path)

    def relation(self, document: Document) -> str | None:
        books = _known(self.path)
        return _relation(document, books, {books.link})

    def put(self, document: Document) -> Path | None:
        books = self.books()
        kept = _keep(books.tokens, document, books, self.surroundings, self.path)
        _write(self.path, own_login(document, books), kept)
        return kept

    def forget_stale(self) -> Path | None:
        """What is noted of an earlier login's refreshes goes."""
        books = self.books()
        sending = books.content["sending"] if books.link and books.in_doubt(books.link) else None
        write_json(self.path, {**books.content, "last_refresh": {}, "sending": sending})
        return None

    def take_out(self, document: Document) -> None:
        books = self.books()
        if books.link != document.fingerprint:
            raise _rotated(self.path)
        # The OAuth client stays: a next login is made for the same.
        write_json(self.path, {**books.without_login(), "client_id": books.client_id or document.client_id})


def _link(tokens: Json) -> str:
    return fingerprint(tokens["refresh_token"])


def _known(path: Path) -> Books:
    """The bookkeeping, empty when nobody understands it."""
    try:
        return read_books(path)
    except Damaged:
        return Books({"successors": {}, "dead": {}})


def _living(
    stored: list[Json], books: Books, surroundings: Surroundings, endpoint: object, path: Path
) -> Document:
    """The most preferred login that can be sent; raise `Problem` when there is none."""
    problem: Problem = NoLogin(_ALL_SPENT.format(place=path))
    for tokens in stored:
        current = _current(tokens, books)
        if current is None:
            continue
        document = _document(current, books, surroundings, endpoint)
        error = books.verdict(document.fingerprint, document.client_id)
        if error is None:
            if books.in_doubt(document.fingerprint):
                raise Problem(_IN_DOUBT)
            return document
        problem = NoLogin(_REFUSED.format(place=path, error=error))
    raise problem


def _current(tokens: Json, books: Books) -> Json | None:
    """What to use instead of a link found in a store: itself, its successor, or nothing."""
    link = _link(tokens)
    newest = books.newest(link)
    if newest == link:
        return tokens
    return books.tokens if books.link == newest else None


def _document(tokens: Json, books: Books, surroundings: Surroundings, endpoint: object) -> Document:
    recorded = books.client_id if books.link == _link(tokens) else None
    known = (recorded, claimed_client_id(tokens))
    # An own login was made for the client that is recorded; a shared one is whose its token says.
    first, second = known if books.content.get("source") == "own" else reversed(known)
    client_id = surroundings.client_id or first or second
    if not isinstance(endpoint, str) or not is_trusted(endpoint, allow_loopback=surroundings.allow_loopback):
        endpoint = f"{surroundings.issuer}/oauth2/token"
    return Document(client_id, endpoint, tokens)


def _relation(document: Document, books: Books, in_use: Collection[str | None]) -> str | None:
    link = document.fingerprint
    if books.is_spent(link):
        return SPENT
    if books.verdict(link, document.client_id) == "invalid_grant":
        return DEAD
    return HERE if link in in_use else None


def _keep(
    before: Json | None, document: Document, books: Books, surroundings: Surroundings, path: Path
) -> Path | None:
    """Write the login that is about to be replaced to a file of its own, unless it is the same or dead."""
    current = _current(before, books) if before else None
    if current is None:
        return None
    replaced = _document(current, books, surroundings, None)
    dead = books.verdict(replaced.fingerprint, replaced.client_id) == "invalid_grant"
    if dead or replaced.fingerprint == document.fingerprint:
        return None
    return write_numbered(path, replaced.text())


def _write(path: Path, content: Json, kept: Path | None) -> None:
    try:
        write_json(path, content)
    except Problem as problem:
        also = f" A copy of the login in it was made meanwhile: {kept}." if kept else ""
        raise Problem(problem.message + also) from None


def _rotated(path: Path) -> Problem:
    return Problem(
        f"Nothing was removed: the login in {path} was refreshed or replaced since it was exported, so the "
        "exported copy is spent or another one. Export again."
    )
