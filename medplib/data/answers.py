"""The words of an answer to "where is ...": one wording for what is there, one for what is not, so that one token carries the decision."""

from __future__ import annotations

from collections.abc import Sequence

REFUSAL = "There is no {name} in this image."
"""The answer to a question for one absent thing; its first token is the decision."""


NOT_IN_LIST = "not visible"

REFUSAL_STARTS = (" There is no", f" {NOT_IN_LIST}")
"""How refusals go on where a mask could stand instead: in an answer about one thing, and behind a name in a list."""


def locating_answer(wanted: Sequence[tuple[str, str | None]]) -> str:
    """The answer to a request for one or several things.

    Args:
        wanted: (name, text of its mask, "<SEG>" with or without a path; None for an absent thing).

    Returns:
        The mask or the refusal for one thing. For several each name comes first, then its mask or "not visible": the state behind a name
        decides about it, whatever the answer is, and knows what it is about.
    """
    if len(wanted) == 1:
        ((name, mask),) = wanted
        return REFUSAL.format(name=name) if mask is None else mask
    return ", ".join(f"{name} {NOT_IN_LIST}" if mask is None else f"{name} {mask}" for name, mask in wanted) + "."
