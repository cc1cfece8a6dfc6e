"""Turns a conversation into token ids, labels and positions. Question and answer are tokenized apart, so no label is found by search.

Template and label rule: every answer and its end token are supervised, nothing else (Vicuna-v1 style with two
separators). The image placeholder is expanded here, so ids, labels and hidden states align one to one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medplib.tokens import (
    IGNORE_LABEL,
    IMAGE_END,
    IMAGE_PLACEHOLDER,
    IMAGE_START,
    IMAGE_TAG,
    REGION_END,
    REGION_PLACEHOLDER,
    REGION_START,
    SEG,
)
from medplib.types import Template, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DECISION = "\x00"
"""Put into the text of an answer where an absent target is decided: the state of the token before it. Never becomes a token itself."""

KNOWN_TEXTS = 100_000
"""Texts whose tokens are kept."""

_TAGS = re.compile(f"({re.escape(IMAGE_TAG)}|{re.escape(REGION_START + REGION_END)})")


@dataclass
class TokenRun:
    """A growing run of tokens.

    `answers`: per answer its (start, end) in `ids`, end token included. `decisions`: per DECISION mark the index of the token behind it.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)
    decisions: list[int] = field(default_factory=list)

    def add(self, ids: list[int], *, supervised: bool = False) -> None:
        """Append tokens; unsupervised ones get IGNORE_LABEL."""
        self.ids += ids
        self.labels += ids if supervised else [IGNORE_LABEL] * len(ids)


class ConversationEncoder:
    """Renders turns with a template and a tokenizer.

    Args:
        tokenizer: has the special tokens of medplib.tokens.
        template: words around the turns.
        image_tokens: P, placeholders per image.
    """

    def __init__(self, *, tokenizer: PreTrainedTokenizerBase, template: Template, image_tokens: int) -> None:
        self.tokenizer, self.template, self.image_tokens = tokenizer, template, image_tokens
        special = tokenizer.convert_tokens_to_ids
        self.seg_id, self.eos_id = special(SEG), tokenizer.eos_token_id
        self._image = [special(IMAGE_START), *[IMAGE_PLACEHOLDER] * image_tokens, special(IMAGE_END)]
        self._region = [special(REGION_START), REGION_PLACEHOLDER, special(REGION_END)]
        self._known: dict[str, list[int]] = {}  # texts repeat (templates, names, answers), and a tokenizer call costs more than an image

    def text_ids(self, text: str) -> list[int]:
        """Token ids of plain text, without begin or end tokens."""
        if not text:
            return []
        if text not in self._known:
            if len(self._known) >= KNOWN_TEXTS:
                self._known.clear()
            self._known[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]

    def name_ids(self, name: str) -> list[int]:
        """Token ids of a target's name as it stands inside a sentence (with the space before it)."""
        return self.text_ids(" " + name)

    def _human_ids(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in _TAGS.split(text):
            if piece == IMAGE_TAG:
                ids += self._image
            elif piece == REGION_START + REGION_END:
                ids += self._region
            else:
                ids += self.text_ids(piece.strip() if self.template.image_in_turn else piece)
        return ids

    def prefix(self, *, images: int = 1) -> TokenRun:
        """What every conversation about the same images starts with: begin token, system words, the images."""
        run = TokenRun()
        bos = self.tokenizer.bos_token_id
        run.add([] if bos is None else [bos])
        words = self.template
        run.add(self.text_ids(f"{words.system} {words.human}".strip() if words.image_in_turn else words.system))
        for _ in range(images):
            run.add(self._image)
        return run

    def conversation(self, turns: tuple[Turn, ...], *, open_ended: bool = False) -> TokenRun:
        """The tokens of `turns`. With `open_ended` the last turn must be human, and the run ends where the answer begins."""
        run, words = TokenRun(), self.template
        for index, turn in enumerate(turns):
            if turn.role == "human":
                if words.image_in_turn:  # the first role word stands before the images already
                    said = turn.text if index == 0 else f"{words.human} {turn.text}"
                    run.add(self._human_ids(f"{said} {words.gpt}"))
                    continue
                run.add(self.text_ids(words.human))
                run.add(self._human_ids(" " + turn.text.strip()))
                run.add(self.text_ids(words.gpt))
                continue
            start = len(run.ids)
            # No space of its own before <SEG>: it would be a token, and give away that <SEG> follows before the model decides.
            answer = turn.text.strip() if words.image_in_turn else f" {turn.text.strip()}".replace(f" {SEG}", SEG)
            for number, piece in enumerate(answer.split(DECISION)):
                if number:
                    run.decisions.append(len(run.ids))
                run.add(self.text_ids(piece), supervised=True)
            run.add([self.eos_id], supervised=True)
            run.answers.append((start, len(run.ids)))
        if open_ended and (not turns or turns[-1].role != "human"):
            raise ValueError("an open-ended conversation ends with a human turn")
        return run


def without_leading_images(turns: tuple[Turn, ...], images: int, *, anywhere: bool = False) -> tuple[Turn, ...] | None:
    """The turns without the image tags that open the first one; None when the images do not all stand there.

    Conversations of this form can share one image prefix. With `anywhere` the tags may stand elsewhere in the first turn, too: the
    published code moves them to its start.
    """
    if anywhere and turns[0].text.count(IMAGE_TAG) == images:
        return (Turn("human", turns[0].text.replace(IMAGE_TAG, "").strip()), *turns[1:])
    text, count = turns[0].text.lstrip(), 0
    while text.startswith(IMAGE_TAG):
        text, count = text[len(IMAGE_TAG) :].lstrip(), count + 1
    rest = sum(turn.text.count(IMAGE_TAG) for turn in turns[1:]) + text.count(IMAGE_TAG)
    if count != images or rest:
        return None
    return (Turn("human", text), *turns[1:])
