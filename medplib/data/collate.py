"""Samples -> Batch: pad the text, concatenate images, targets and regions, and renumber what points at them."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from medplib.data.conversation import ConversationEncoder
from medplib.tokens import IGNORE_LABEL
from medplib.types import Batch, Sample


class Collator:
    """Builds batches.

    Args:
        text: tokenizes target names.
        pad_left: put the padding before the text (generation), not behind it (training).
        length_step: pad to a multiple of it.
    """

    def __init__(self, text: ConversationEncoder, *, pad_left: bool = False, length_step: int = 1) -> None:
        self.text, self.pad_left, self.length_step = text, pad_left, length_step
        self.pad_id = text.tokenizer.pad_token_id

    def __call__(self, samples: list[Sample]) -> Batch:
        """Collate; shapes as documented at medplib.types.Batch."""
        lengths = [len(s.input_ids) for s in samples]
        longest = -(-max(lengths) // self.length_step) * self.length_step
        shift = [longest - n if self.pad_left else 0 for n in lengths]
        first_image = np.cumsum([0, *[len(s.vision_pixels) for s in samples]])
        targets = [(row, target) for row, sample in enumerate(samples) for target in sample.targets]
        size = samples[0].letterboxes[0].size
        names = [target.name for _, target in targets]
        name_ids = [torch.from_numpy(np.array(self.text.name_ids(name))) for name in names]
        return Batch(
            input_ids=self._pad([s.input_ids for s in samples], self.pad_id, longest),
            labels=self._pad([s.labels for s in samples], IGNORE_LABEL, longest),
            attention_mask=self._pad([torch.ones(n, dtype=torch.bool) for n in lengths], 0, longest),
            segments=self._pad([s.segments for s in samples], 0, longest),
            positions=self._pad([s.positions for s in samples], 0, longest),
            vision_pixels=torch.cat([s.vision_pixels for s in samples]),
            sam_pixels=None if samples[0].sam_pixels is None else torch.cat([s.sam_pixels for s in samples]),
            letterboxes=[box for s in samples for box in s.letterboxes],
            target_row=torch.tensor([row for row, _ in targets], dtype=torch.int64),
            target_position=torch.tensor([t.position + shift[row] for row, t in targets], dtype=torch.int64),
            target_image=torch.tensor([first_image[row] + t.image_index for row, t in targets], dtype=torch.int64),
            target_present=torch.tensor([t.present for _, t in targets], dtype=torch.bool),
            target_masks=_stack_masks([t.mask_SS for _, t in targets], size),
            original_masks=[None if t.mask_HW is None else torch.from_numpy(t.mask_HW) for _, t in targets],
            name_ids=pad_sequence(name_ids, batch_first=True, padding_value=-1) if names else torch.zeros(0, 1, dtype=torch.int64),
            names=names,
            region_masks=torch.cat([s.region_masks for s in samples]),
            region_image=torch.tensor([first_image[row] + i for row, s in enumerate(samples) for i in s.region_images], dtype=torch.int64),
            records=[s.records for s in samples],
            unmasked=0 if self.pad_left else min(int((s.segments <= 1).sum()) for s in samples),
        )

    def _pad(self, rows: list[torch.Tensor], value: int, length: int) -> torch.Tensor:
        padded = pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left" if self.pad_left else "right")
        missing = length - padded.shape[1]
        return functional.pad(padded, (missing, 0) if self.pad_left else (0, missing), value=value) if missing else padded


def _stack_masks(masks: list[np.ndarray | None], size: int) -> torch.Tensor:
    """(N, S, S) uint8, zeros where a target has no mask."""
    empty = np.zeros((size, size), np.uint8)
    return (
        torch.from_numpy(np.stack([empty if m is None else m for m in masks])) if masks else torch.zeros(0, size, size, dtype=torch.uint8)
    )
