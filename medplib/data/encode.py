"""Loaded conversations -> Sample: letterboxed pixels, token ids with the shared image prefix, targets with the state that decides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from medplib.data.conversation import DECISION, ConversationEncoder, TokenRun, without_leading_images
from medplib.errors import InputError
from medplib.imaging.letterbox import grid_coverage, letterbox_mask_area, letterbox_planes, published_region_grid
from medplib.types import InputSpec, Letterbox, Record, Sample, SampleTarget, Target, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VISION_FILL = (122, 116, 104)
"""CLIP mean x 255, truncated: what the published preprocessing pads the vision image with."""
SAM_FILL = (0, 0, 0)
"""Padding of the grounder image; the grounder zeroes it after normalisation."""


_REFUSED = re.compile(r"\b(no|not|without)\s+(an?\s+|the\s+)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Loaded:
    """Conversations about the same images, with their files read. Masks are bool at the size of their image, None when absent."""

    images: tuple[np.ndarray, ...]  # (H, W, 3) uint8
    records: tuple[Record, ...]
    target_masks: tuple[tuple[np.ndarray | None, ...], ...]  # per record, per target
    region_masks: tuple[tuple[np.ndarray, ...], ...]  # per record, per region
    spacings: tuple[tuple[float, float] | None, ...] = ()  # per image: mm between rows and columns as read; () when nobody asks


class SampleEncoder:
    """Builds samples for one model.

    Args:
        tokenizer: has the special tokens.
        spec: sizes and template of the model.
        open_ended: drop the last answer, so that the sample ends where the model has to answer.
        with_image: False blanks the image (grey), a control for language priors.
    """

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        spec: InputSpec,
        open_ended: bool = False,
        with_image: bool = True,
    ) -> None:
        self.spec, self.open_ended, self.with_image = spec, open_ended, with_image
        self.text = ConversationEncoder(tokenizer=tokenizer, template=spec.template, image_tokens=spec.image_tokens)

    def encode(self, loaded: Loaded) -> Sample:
        """One sample of all conversations in `loaded`; several only when each starts with the images.

        Raises:
            InputError: a conversation is longer than `max_length`, or cannot share the image prefix.
        """
        run, segments, targets, regions = self._tokens(loaded)
        if len(run.ids) > self.spec.max_length:
            raise InputError(
                where=f"record {loaded.records[0].id}",
                expected=f"at most {self.spec.max_length} tokens",
                found=str(len(run.ids)),
                remedy="raise model.max_length or shorten the conversation",
            )
        segments_L = np.array(segments)
        images = loaded.images if self.with_image else tuple(np.full_like(image, 127) for image in loaded.images)
        sam_size = self.spec.sam_size
        vision_pixels, sam_pixels = _pixels(images, self.spec.vision_size, sam_size, published=self.spec.legacy)
        return Sample(
            input_ids=torch.from_numpy(np.array(run.ids)),
            labels=torch.from_numpy(np.array(run.labels)),
            segments=torch.from_numpy(segments_L),  # a third of the time of torch.tensor
            positions=torch.from_numpy(prefix_positions(segments_L)),
            vision_pixels=vision_pixels,
            sam_pixels=sam_pixels,
            letterboxes=tuple(Letterbox.fit(image.shape[:2], sam_size or self.spec.vision_size) for image in images),
            targets=tuple(targets),
            region_masks=torch.from_numpy(np.stack(regions)) if regions else torch.zeros(0, self.spec.region_grid, self.spec.region_grid),
            region_images=(0,) * len(regions),
            records=loaded.records,
        )

    def _tokens(self, loaded: Loaded) -> tuple[TokenRun, list[int], list[SampleTarget], list[np.ndarray]]:
        moved = self.spec.template.image_in_turn
        shared = [without_leading_images(record.turns, len(record.images), anywhere=moved) for record in loaded.records]
        if len(shared) > 1 and any(turns is None for turns in shared):
            bad = loaded.records[shared.index(None)]
            raise InputError(where=f"record {bad.id}", expected="'<image>' at the start only, to share a prefix", found=bad.turns[0].text)
        if shared[0] is None:
            run, bodies = TokenRun(), [loaded.records[0].turns]
            run.add([] if self.text.tokenizer.bos_token_id is None else [self.text.tokenizer.bos_token_id])
            run.add(self.text.text_ids(self.spec.template.system))
        else:
            run, bodies = self.text.prefix(images=len(loaded.images)), shared
        segments = [0] * len(run.ids)
        targets: list[SampleTarget] = []
        regions: list[np.ndarray] = []
        for number, (record, turns) in enumerate(zip(loaded.records, bodies, strict=True), 1):
            turns = turns[:-1] if self.open_ended and turns[-1].role == "gpt" else turns
            turns = tuple(_with_decisions(turn, index, record.targets) for index, turn in enumerate(turns))
            body = self.text.conversation(turns, open_ended=self.open_ended)
            offset = len(run.ids)
            run.ids += body.ids
            run.labels += body.labels
            segments += [number] * len(body.ids)
            targets += self._targets(record, turns, body, offset, loaded.target_masks[number - 1])
            if not self.spec.vision_size:
                continue
            on_grid = published_region_grid if self.spec.legacy else grid_coverage
            regions += [on_grid(mask, self.spec.vision_size, self.spec.region_grid) for mask in loaded.region_masks[number - 1]]
        return run, segments, targets, regions

    def _targets(
        self, record: Record, turns: tuple[Turn, ...], body: TokenRun, offset: int, masks: tuple[np.ndarray | None, ...]
    ) -> list[SampleTarget]:
        """The targets with a known deciding state: each `<SEG>`, the start of an answer that refuses one thing, and the state behind the
        name of each absent thing in an answer about several.
        """
        starts = {}  # answer turn index -> (start, end) in body
        for index, span in zip([i for i, turn in enumerate(turns) if turn.role == "gpt"], body.answers, strict=True):
            starts[index] = span
        out: list[SampleTarget] = []
        for turn_index in sorted({target.turn for target in record.targets}):
            of_turn = [(t, m) for t, m in zip(record.targets, masks, strict=True) if t.turn == turn_index]
            present = [(t, m) for t, m in of_turn if t.mask is not None]
            absent = [(t, m) for t, m in of_turn if t.mask is None]
            if turn_index in starts:
                start, end = starts[turn_index]
                segs = [i for i in range(start, end) if body.ids[i] == self.text.seg_id]
                refusals = [i for i in body.decisions if start < i < end] or ([] if present else [start])
            else:  # the open-ended answer: the first state of the answer decides about its first target
                start = len(body.ids)
                segs, refusals = ([start], []) if present else ([], [start])
            decided = [*zip(present, segs, strict=False), *zip(absent, refusals, strict=False)]
            out += [self._target(t, m, offset + at - 1) for (t, m), at in decided]
        return out

    def _target(self, target: Target, mask: np.ndarray | None, position: int) -> SampleTarget:
        sam_size = self.spec.sam_size
        area = None if mask is None or sam_size is None else letterbox_mask_area(mask, sam_size)
        whole = mask if self.spec.legacy and area is not None else None
        return SampleTarget(target.name, target.image_index, position, target.mask is not None, area, whole)


def _with_decisions(turn: Turn, index: int, targets: tuple[Target, ...]) -> Turn:
    """The turn with DECISION behind the name of each absent target of an answer about several; names are looked for in order.

    All of them or none: with a refusal before its name ("no spleen"), behind which the state knows too much to decide, the marks would no
    longer say which absent target they belong to.
    """
    of_turn = [target for target in targets if target.turn == index]
    if turn.role != "gpt" or len(of_turn) < 2:
        return turn
    text, start = turn.text, 0
    for target in of_turn:
        at = text.find(target.name, start)
        if at < 0:
            return turn  # an answer in other words: what it refuses has no deciding state
        start = at + len(target.name)
        if target.mask is None:
            if _REFUSED.search(text[:at]):
                return turn
            text = text[:start] + DECISION + text[start:]
    return Turn(turn.role, text)


def prefix_positions(segments_L: np.ndarray) -> np.ndarray:
    """Positions (L,) int64 that restart behind the prefix for every segment (segments ascend from 0)."""
    index_L = np.arange(len(segments_L))
    starts_L = segments_L.searchsorted(segments_L)  # first index of each token's segment
    return np.where(segments_L == 0, index_L, index_L - starts_L + segments_L.searchsorted(1))


def _pixels(
    images: tuple[np.ndarray, ...], vision_size: int, sam_size: int | None, *, published: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pixels for the vision encoder and for the grounder, (images, 3, size, size) uint8 each; of one size they are resized once."""

    def squares(size: int, *fills: tuple[int, int, int]) -> list[np.ndarray]:
        return [letterbox_planes(image, size, fills, published=published) for image in images]

    if vision_size == sam_size:
        both = squares(vision_size, VISION_FILL, SAM_FILL)
        return _joined([planes[:1] for planes in both]), _joined([planes[1:] for planes in both])
    vision = _joined(squares(vision_size, VISION_FILL)) if vision_size else torch.zeros(len(images), 3, 0, 0, dtype=torch.uint8)
    return vision, None if sam_size is None else _joined(squares(sam_size, SAM_FILL))


def _joined(parts: list[np.ndarray]) -> torch.Tensor:
    """Along the first axis; a single part is not copied."""
    return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))
