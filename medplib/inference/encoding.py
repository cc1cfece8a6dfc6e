"""Features of a batch's images: equal ones are encoded once, and an evaluation may remember them from one set of questions to the next."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from medplib.models.build import ModelConfig
from medplib.models.features import ImageFeatures, weights_hash
from medplib.models.medplib import MedPLIB
from medplib.types import Batch, Letterbox

ALIKE = 12
"""Most images that are encoded at once: on CPUs, two to fifteen give the same features to the bit, sixteen and more others (1e-6)."""

Encode = Callable[[list[int]], tuple[torch.Tensor, ...]]
"""Places in a batch -> tensors with one row for each of these images."""


class ImageMemory:
    """What parts of models made of images, the most recently asked for; `megabytes` at most, on the device where it was made."""

    def __init__(self, megabytes: float = 512.0) -> None:
        self.megabytes, self.left = megabytes, megabytes * 1e6
        self._rows: OrderedDict[tuple[str, bytes], tuple[torch.Tensor, ...]] = OrderedDict()

    def known(self, part: str, image: bytes) -> tuple[torch.Tensor, ...] | None:
        """What `part` made of an image; None where it is not remembered."""
        row = self._rows.get((part, image))
        if row is not None:
            self._rows.move_to_end((part, image))
        return row

    def keep(self, part: str, image: bytes, row: tuple[torch.Tensor, ...]) -> None:
        """Remember it, and forget what was asked for longest ago; what has no room at all is not remembered."""
        self.left += _size(self._rows.pop((part, image), ()))
        if _size(row) > self.megabytes * 1e6:
            return
        self._rows[part, image] = row
        self.left -= _size(row)
        while self.left < 0 and self._rows:
            self.left += _size(self._rows.popitem(last=False)[1])


@dataclass(frozen=True)
class EncodedImages:
    """Features of the I images of a batch of B rows.

    `shown` (I, g, g, Dv) from the vision encoder; `features` of the grounder, prepared for its decoder, None without one; `leader` (B,) the
    first row with the same images as a row, in their order.
    """

    shown: torch.Tensor
    features: ImageFeatures | None
    leader: torch.Tensor


class BatchEncoder:
    """Encodes the images of batches with one model; `memory` is shared by models whose encoders may be equal."""

    def __init__(self, model: MedPLIB, config: ModelConfig, memory: ImageMemory | None = None) -> None:
        self.model, self.memory = model, memory
        self._vision, self._grounder = "vision", "grounder"
        if memory is not None:
            self._vision = f"{config.vision} {weights_hash(model.vision)}"
            grounder = model.grounder
            image_side = [] if grounder is None else [grounder.normaliser, grounder.image_encoder, grounder.upscaling]
            self._grounder = f"{config.grounder} {weights_hash(*(part for part in image_side if part is not None))}"

    def __call__(self, batch: Batch, *, remember: bool = True) -> EncodedImages:
        """Encode what is not known yet; with `remember` False nothing is looked up or kept (images that are never asked for again)."""
        boxes, model, memory = batch.letterboxes, self.model, self.memory if remember else None
        at_once = ALIKE if batch.vision_pixels.device.type == "cpu" else len(boxes)

        def vision(places: list[int]) -> tuple[torch.Tensor, ...]:
            return (model.vision(batch.vision_pixels[places], [boxes[place] for place in places]),)

        def grounder(places: list[int]) -> tuple[torch.Tensor, ...]:
            found = model.grounder.encode(batch.sam_pixels[places], [boxes[place] for place in places])
            found = model.grounder.prepared(found)
            return (found.embedding, found.statistics, *found.skips)

        seen = _image_keys(batch.vision_pixels, boxes)
        (shown,) = _through(memory, self._vision, seen, vision, at_once)
        features = None
        if model.grounder is not None:
            fine = _image_keys(batch.sam_pixels, boxes)
            embedding, statistics, *skips = _through(memory, self._grounder, fine, grounder, at_once)
            features = ImageFeatures(embedding, tuple(skips), statistics, refined=model.grounder.upscaling is not None)
            seen = [one + other for one, other in zip(seen, fine, strict=True)]
        return EncodedImages(shown, features, _leaders(batch, seen, shown.device))


def _through(memory: ImageMemory | None, part: str, images: Sequence[bytes], encode: Encode, at_once: int) -> list[torch.Tensor]:
    """What `encode` makes of all images, asked for those that are neither remembered nor there twice, at most `at_once` together.

    A CPU takes other kernels, with other last bits, for one image and for many. So that the figures of an evaluation do not hang on what is
    remembered, a lone new image is encoded beside a known one, and an image that is alone in its batch is neither looked up nor kept.
    """
    first = {image: place for place, image in reversed(list(enumerate(images)))}
    memory = memory if len(first) > 1 else None
    rows = {image: row for image in first if memory is not None and (row := memory.known(part, image)) is not None}
    new = sorted(place for image, place in first.items() if image not in rows)
    if new:
        alone = len(new) == 1 < len(first)
        made = _in_pieces([*new, next(place for place in first.values() if place not in new)] if alone else new, encode, at_once)
        for k, place in enumerate(new):
            rows[images[place]] = row = tuple(column[k] for column in made)
            if memory is not None:
                memory.keep(part, images[place], tuple(value.clone() for value in row))
    return [torch.stack(column) for column in zip(*(rows[image] for image in images), strict=True)]


def _in_pieces(places: list[int], encode: Encode, at_once: int) -> list[torch.Tensor]:
    """What `encode` makes of the images at `places`, in as few pieces of nearly one size as there must be."""
    count = -(-len(places) // at_once)
    cuts = [len(places) * k // count for k in range(count + 1)]
    pieces = [encode(places[start:stop]) for start, stop in pairwise(cuts)]
    return [column[0] if len(column) == 1 else torch.cat(column) for column in zip(*pieces, strict=True)]


def _image_keys(pixels: torch.Tensor, boxes: Sequence[Letterbox]) -> list[bytes]:
    """One for each of I images (I, 3, S, S), equal where pixels and place in the square are."""
    return [
        hashlib.blake2b(image.contiguous().numpy().tobytes() + repr(box).encode()).digest()
        for image, box in zip(pixels.cpu(), boxes, strict=True)
    ]


def _leaders(batch: Batch, images: Sequence[bytes], device: torch.device) -> torch.Tensor:
    ends = [0]
    for records in batch.records:
        ends.append(ends[-1] + len(records[0].images))
    of_row = [tuple(images[start:end]) for start, end in pairwise(ends)]
    return torch.tensor([of_row.index(row) for row in of_row], device=device)


def _size(row: tuple[torch.Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in row)
