"""What the simulated model says: a pleasant sentence that echoes the last thing it was told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from grok_oauth_proxy.sim.call import Call

DEFAULT_MODEL = "grok-4"
THOUGHTS = ("The person said something. ", "A friendly answer fits.")
FILLER = ("and", "all", "is", "well", "under", "a", "butterscotch", "sky")


@dataclass(frozen=True)
class Answer:
    """One completed turn; counts are in tokens, and a word is a token."""

    id: str
    model: str
    created: int
    text: str
    prompt_tokens: int

    @property
    def words(self) -> list[str]:
        """The text in deltas that join to it again."""
        return re.findall(r"\S+\s*", self.text)

    @property
    def completion_tokens(self) -> int:
        return len(self.words)

    @property
    def reasoning_tokens(self) -> int:
        return sum(len(thought.split()) for thought in THOUGHTS)

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def answer(call: Call, request: Mapping[str, object], prefix: str) -> Answer:
    """The answer to `request`, accounted for in the world; `prefix` begins its id."""
    said = last_words(request)
    text = f"You said: {said} — it is a pleasure to hear from you."
    if call.directives.words is not None:
        text = " ".join(FILLER[i % len(FILLER)] for i in range(call.directives.words))
    model = request.get("model")
    world = call.world
    made = Answer(
        id=world.next_id(prefix),
        model=model if isinstance(model, str) else DEFAULT_MODEL,
        created=int(world.now()),
        text=text,
        prompt_tokens=max(1, len(said.split())),
    )
    world.completions += 1
    world.spent_tokens += made.total_tokens
    return made


def last_words(request: Mapping[str, object]) -> str:
    """The newest text in `messages`, `input` or `prompt`."""
    for name in ("messages", "input", "prompt"):
        if name in request:
            return _text_of(request[name])
    return ""


def _text_of(value: object) -> str:
    """The text of a string, a message, a content part, or the last item of a list that has any."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return next(filter(None, map(_text_of, reversed(value))), "")
    if isinstance(value, dict):
        return _text_of(value.get("content") or value.get("text"))
    return ""
