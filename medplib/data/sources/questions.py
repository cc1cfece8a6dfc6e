"""What a question asks to be located: MeCoVQA writes the name of a target only in the words of the question."""

from __future__ import annotations

import re
from functools import lru_cache

_PLACE = r"(?:\s+(?:here|for\s+me|please))*"
_PLACE += r"(?:\s+(?:in|on|from|within|inside|of|for|at|visible in|shown in|seen in|present in)\s+(?:this|the|that)\s+(?:\w+\s+){0,3}?"
_PLACE += r"(?:image|images|picture|scan|slice|photo|photograph|radiograph|x-ray|frame|view|figure)\b.*)?"
_END = r"\s*(?:[.?!;].*)?$"
_ARTICLE = r"(?:(?:the|a|an|all|any|every|each)\s+)*"
_TEMPLATES = tuple(
    re.compile(opening + _ARTICLE + r"(?P<name>\S.*?)" + closing + _PLACE + _END, re.IGNORECASE | re.DOTALL)
    for opening, closing in (
        (r"\bsegment(?:s|ed|ing|ation)?\s+(?:out\s+)?(?:(?:mask\s+)?(?:of|for)\s+)?", ""),
        (r"\bmasks?\s+(?:of|for|that\s+(?:shows|covers|marks|outlines))\s+", ""),
        (r"\bwhere\s+", r"\s+(?:is|are|lies|lie)(?:\s+located)?"),
        (r"\b(?:outline|delineate|mark|locate|highlight|find|show me)\s+", ""),
        (r"\bwhere\s+(?:is|are)\s+", ""),
        (r"\bwhat\s+(?:is|are)\s+", ""),
    )
)
_POINTERS = {"mask", "masks", "it", "them", "this", "that", "these", "those", "one", "structure", "region", "image"}
_LIST = re.compile(r"\s*,\s*(?:and\s+)?|\s+and\s+")


@lru_cache(maxsize=4096)  # data sets ask the same few hundred questions
def names_in_question(question: str, count: int) -> tuple[str, ...] | None:
    """The names of `count` things that a question asks for, in order; None when no known form of question fits.

    A list ("the liver and the spleen") is split only where several masks answer it, because "left and right lung" can be one mask.
    """
    text = " ".join(question.split())
    for template in _TEMPLATES:
        match = template.search(text)
        if match is None:
            continue
        name = match.group("name").strip(" .,:;?!\"'")
        parts = [name] if count == 1 else [re.sub(f"^{_ARTICLE}", "", part, flags=re.IGNORECASE) for part in _LIST.split(name)]
        if len(parts) == count and all(part and part.lower() not in _POINTERS for part in parts):
            return tuple(parts)
    return None


@lru_cache(maxsize=4096)
def listed_in_question(question: str) -> tuple[str, ...]:
    """The names that a question lists ("the liver and the spleen"), in order; () where it asks for one thing or in no known form."""
    for count in range(2, 2 + len(_LIST.findall(question))):
        if names := names_in_question(question, count):
            return names
    return ()
