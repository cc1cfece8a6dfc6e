"""The five concepts: Record -> Sample -> Batch -> ModelOutput -> Answer, and the geometry that travels with them.

Letters in shapes: B batch, L tokens, I images of a batch, N targets of a batch, R regions of a batch, P image tokens, S side of the
square grounder input, H W original height and width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch

Task = Literal["caption", "vqa_closed", "vqa_open", "region", "grounding"]


@dataclass(frozen=True)
class Turn:
    """One utterance. In human text `<image>` takes the next image and `<region></region>` the next region of the record; in the
    text of gpt each `<SEG>` takes the next present target.
    """

    role: Literal["human", "gpt"]
    text: str


@dataclass(frozen=True)
class Target:
    """A named thing that a question asks to be located. `mask` is None when it is absent from the image; `turn` is the index into
    `Record.turns` of the answer that speaks of it; targets are ordered by turn, and inside one turn as they are named.
    """

    name: str
    mask: Path | None
    image_index: int = 0
    turn: int = 1


@dataclass(frozen=True)
class Meta:
    """Where a record comes from. `patient` groups what must not be split; `present` lists every structure known to be visible
    (empty when unknown), which lets mosaics and negatives be built without lying.
    """

    source: str = ""
    modality: str = ""
    anatomy: str = ""
    task: Task = "vqa_open"
    patient: str = ""
    present: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """What a data set says about one conversation; paths are absolute and were checked to lie inside the data root.

    The number of `<SEG>` in gpt turns equals the number of targets with a mask, in order.
    """

    id: str
    images: tuple[Path, ...]
    turns: tuple[Turn, ...]
    targets: tuple[Target, ...] = ()
    regions: tuple[Path, ...] = ()
    meta: Meta = field(default_factory=Meta)


@dataclass(frozen=True)
class Letterbox:
    """An image of `original_size`, resized to `resized_size` (longest side = `size`) and padded to a `size` x `size` square.

    Sizes are (height, width) in pixels; `pad` is (top, left), the floor half of the free space (centred padding).
    """

    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    pad: tuple[int, int]
    size: int

    @staticmethod
    def fit(original_size: tuple[int, int], size: int) -> Letterbox:
        """The letterbox of an image of `original_size` (H, W) in a square of side `size`; no side falls below one pixel."""
        height, width = original_size
        scale = size / max(height, width)
        resized = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        return Letterbox(original_size, resized, ((size - resized[0]) // 2, (size - resized[1]) // 2), size)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the square that hold image, not padding."""
        (top, left), (height, width) = self.pad, self.resized_size
        return slice(top, top + height), slice(left, left + width)


@dataclass(frozen=True)
class Template:
    """Words around the turns; stored with every checkpoint, so that training, evaluation and serving cannot differ (bug B9).

    With `image_in_turn` the images follow the first role word instead of preceding it, and the tokenizer sees each stretch of text without
    spaces at its ends, as published models were trained (the words are then given without spaces, too).
    """

    system: str = ""
    human: str = " USER:"
    gpt: str = " ASSISTANT:"
    image_in_turn: bool = False


@dataclass(frozen=True)
class InputSpec:
    """How a model wants to be fed: sizes in pixels, P tokens per image, `region_grid` cells per side. `sam_size` None = no such input,
    `vision_size` 0 = neither pixels nor regions for a vision encoder.

    `legacy`: regions on the grid and targets at original size as the published code has them.
    """

    vision_size: int
    image_tokens: int
    region_grid: int
    sam_size: int | None
    max_length: int = 2048
    template: Template = field(default_factory=Template)
    legacy: bool = False


@dataclass(frozen=True)
class SampleTarget:
    """One target of a sample. `mask_SS`: letterboxed area fraction as uint8 0..255, None when absent or when nothing needs it.
    `mask_HW`: bool at original size, only where the input specification is `legacy`.

    `position` is the index into input_ids of the state that decides about the target (predicts `<SEG>` or the refusal).
    """

    name: str
    image_index: int
    position: int
    present: bool
    mask_SS: np.ndarray | None
    mask_HW: np.ndarray | None = None


@dataclass(frozen=True)
class Sample:
    """The tensors of one conversation, before batching. Pixels are uint8; normalisation happens on the device."""

    input_ids: torch.Tensor  # (L,) int64, placeholders negative
    labels: torch.Tensor  # (L,) int64, IGNORE_LABEL outside the answers
    segments: torch.Tensor  # (L,) int64, 0 for the shared image prefix, k for the k-th conversation behind it
    positions: torch.Tensor  # (L,) int64, restart behind the prefix for every conversation
    vision_pixels: torch.Tensor  # (images, 3, Sv, Sv) uint8
    sam_pixels: torch.Tensor | None  # (images, 3, S, S) uint8, None when no stage part needs it
    letterboxes: tuple[Letterbox, ...]  # of sam_pixels (or of what it would be)
    targets: tuple[SampleTarget, ...]
    region_masks: torch.Tensor  # (regions, g, g) float32 coverage of each patch by the region
    region_images: tuple[int, ...]  # image index of each region
    records: tuple[Record, ...]  # the conversations behind the shared image prefix


@dataclass
class Batch:
    """Collated samples. Targets and regions of all samples are concatenated in order; `*_image` index the I images."""

    input_ids: torch.Tensor  # (B, L)
    labels: torch.Tensor  # (B, L)
    attention_mask: torch.Tensor  # (B, L) bool
    segments: torch.Tensor  # (B, L)
    positions: torch.Tensor  # (B, L)
    vision_pixels: torch.Tensor  # (I, 3, Sv, Sv) uint8
    sam_pixels: torch.Tensor | None  # (I, 3, S, S) uint8
    letterboxes: list[Letterbox]  # I
    target_row: torch.Tensor  # (N,) row of input_ids
    target_position: torch.Tensor  # (N,) column of input_ids whose state decides
    target_image: torch.Tensor  # (N,) index into I
    target_present: torch.Tensor  # (N,) bool
    target_masks: torch.Tensor  # (N, S, S) uint8 area fraction; zeros when absent
    original_masks: list[torch.Tensor | None]  # N of (H, W) bool where the input specification is legacy, else None
    name_ids: torch.Tensor  # (N, Ln) int64 token ids of the target's name, right-padded with -1
    names: list[str]  # N
    region_masks: torch.Tensor  # (R, g, g) float32
    region_image: torch.Tensor  # (R,) index into I
    records: list[tuple[Record, ...]]  # B
    unmasked: int = 0  # so many first tokens of every row, none of them padding, stand before its second conversation

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`."""
        moved = {
            f.name: value.to(device, non_blocking=non_blocking) if isinstance(value := getattr(self, f.name), torch.Tensor) else value
            for f in fields(self)
        }
        moved["original_masks"] = [None if mask is None else mask.to(device) for mask in self.original_masks]
        return Batch(**moved)

    def pin_memory(self) -> Batch:
        """The same batch with every tensor in page-locked memory."""
        pinned = {f.name: value.pin_memory() if isinstance(value := getattr(self, f.name), torch.Tensor) else value for f in fields(self)}
        return Batch(**pinned)


@dataclass(frozen=True)
class RouterStats:
    """Routing of one forward: per layer, over real (not padding) tokens."""

    probs: torch.Tensor  # (layers, tokens, experts) float32
    chosen: torch.Tensor  # (layers, tokens, top_k) int64
    squared_sums: torch.Tensor  # (layers,) float32, mean over tokens of (log sum exp of the logits)^2


@dataclass(frozen=True)
class GroundingOutput:
    """What the grounder says about N prompts. Logits are before the sigmoid."""

    low_res_logits: torch.Tensor  # (N, s, s)
    mask_logits: torch.Tensor  # (N, S, S) at grounder input size, padding included
    quality: torch.Tensor  # (N,) predicted IoU
    presence_logit: torch.Tensor | None  # (N,) None when the grounder has no presence head


@dataclass(frozen=True)
class ModelOutput:
    """One forward over a Batch. `label_logits` has one row per supervised label, in row-major order of `labels`."""

    label_logits: torch.Tensor  # (T, V)
    label_ids: torch.Tensor  # (T,)
    grounding: GroundingOutput | None
    target_prompts: torch.Tensor | None  # (N, C) projected decision states
    router: RouterStats | None


@dataclass(frozen=True)
class NamedMask:
    """One located thing: bool mask at original size, probability that it is present, predicted IoU."""

    name: str
    mask: np.ndarray
    presence: float
    quality: float


@dataclass(frozen=True)
class Answer:
    """What a person gets: words, and one named mask per `<SEG>` in them."""

    text: str
    masks: tuple[NamedMask, ...]
    seg_probability: float
    """Probability that the first answer token is `<SEG>`: the language model's own presence score of the first target."""
