"""Features of a batch's images: equal ones are encoded once, and an evaluation may remember them from one set of questions to the next."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise

import torch

from medplib.models.build import ModelConfig
from medplib.models.features import ImageFeatures, weights_hash
from medplib.models.medplib import MedPLIB
from medplib.types import Batch, Letterbox

FEWEST, MOST = 4, 12
"""Images that are encoded at once: on CPUs, four to fifteen give the same features to the bit whatever their order, fewer (on AMD's) and
more others (1e-6).
"""
LARGE = 256
"""Side in pixels above which a CPU gains little by encoding several images at once (nothing at 512, a fifth at 256); one by one they are
always alike.
"""

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

        def vision(places: list[int]) -> tuple[torch.Tensor, ...]:
            return (model.vision(batch.vision_pixels[places], [boxes[place] for place in places]),)

        def grounder(places: list[int]) -> tuple[torch.Tensor, ...]:
            found = model.grounder.encode(batch.sam_pixels[places], [boxes[place] for place in places])
            found = model.grounder.prepared(found)
            return (found.embedding, found.statistics, *found.skips)

        seen = _image_keys(batch.vision_pixels, boxes)
        (shown,) = _through(memory, self._vision, seen, vision, _pieces(batch.vision_pixels))
        features = None
        if model.grounder is not None:
            fine = _image_keys(batch.sam_pixels, boxes)
            embedding, statistics, *skips = _through(memory, self._grounder, fine, grounder, _pieces(batch.sam_pixels))
            features = ImageFeatures(embedding, tuple(skips), statistics, refined=model.grounder.upscaling is not None)
            seen = [one + other for one, other in zip(seen, fine, strict=True)]
        return EncodedImages(shown, features, _leaders(batch, seen, shown.device))


def _pieces(pixels: torch.Tensor) -> tuple[int, int]:
    """Fewest and most of I images (I, 3, S, S) that are encoded at once."""
    if pixels.device.type != "cpu":
        return 2, len(pixels)
    return (1, 1) if pixels.shape[-1] > LARGE else (FEWEST, MOST)


def _through(memory: ImageMemory | None, part: str, images: Sequence[bytes], encode: Encode, pieces: tuple[int, int]) -> list[torch.Tensor]:
    """What `encode` makes of all images, asked for those that are neither remembered nor there twice, in `pieces` of fewest and most.

    A CPU takes other kernels, with other last bits, for few images and for many. So that the figures of an evaluation do not hang on what
    is remembered, few new images are encoded beside known ones or twice, and an image that is alone in its batch is neither looked up nor
    kept.
    """
    fewest, most = pieces
    first = {image: place for place, image in reversed(list(enumerate(images)))}
    memory = memory if len(first) > 1 else None
    rows = {image: row for image in first if memory is not None and (row := memory.known(part, image)) is not None}
    new = sorted(place for image, place in first.items() if image not in rows)
    if new:
        beside = cycle([place for place in first.values() if place not in new] or new)
        missing = 0 if memory is None else max(0, fewest - len(new))
        made = _in_pieces([*new, *islice(beside, missing)], encode, most)
        for k, place in enumerate(new):
            rows[images[place]] = row = tuple(column[k] for column in made)
            if memory is not None:
                memory.keep(part, images[place], tuple(value.clone() for value in row))
    return [torch.stack(column) for column in zip(*(rows[image] for image in images), strict=True)]


def _in_pieces(places: list[int], encode: Encode, most: int) -> list[torch.Tensor]:
    """What `encode` makes of the images at `places`, in as few pieces of nearly one size as there must be."""
    count = -(-len(places) // most)
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
