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
from medplib.types import Batch

Encode = Callable[[list[int]], tuple[torch.Tensor, ...]]
"""Places in a batch -> tensors with one row for each of these images."""


class ImageMemory:
    """What parts of models made of images, the most recently asked for; `megabytes` at most, on the device where it was made."""

    def __init__(self, megabytes: float = 512.0) -> None:
        self.left = megabytes * 1e6
        self._rows: OrderedDict[tuple[str, bytes], tuple[torch.Tensor, ...]] = OrderedDict()

    def known(self, part: str, image: bytes) -> tuple[torch.Tensor, ...] | None:
        """What `part` made of an image; None where it is not remembered."""
        row = self._rows.get((part, image))
        if row is not None:
            self._rows.move_to_end((part, image))
        return row

    def keep(self, part: str, image: bytes, row: tuple[torch.Tensor, ...]) -> None:
        """Remember it, and forget what was asked for longest ago."""
        self.left += _size(self._rows.pop((part, image), ()))
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

    def __call__(self, batch: Batch) -> EncodedImages:
        """Encode what is not known yet."""
        images, boxes, model = _image_keys(batch), batch.letterboxes, self.model

        def vision(places: list[int]) -> tuple[torch.Tensor, ...]:
            return (model.vision(batch.vision_pixels[places], [boxes[place] for place in places]),)

        def grounder(places: list[int]) -> tuple[torch.Tensor, ...]:
            found = model.grounder.encode(batch.sam_pixels[places], [boxes[place] for place in places])
            found = model.grounder.prepared(found)
            return (found.embedding, found.statistics, *found.skips)

        (shown,) = self._through(self._vision, images, vision)
        features = None
        if model.grounder is not None:
            embedding, statistics, *skips = self._through(self._grounder, images, grounder)
            features = ImageFeatures(embedding, tuple(skips), statistics, refined=model.grounder.upscaling is not None)
        return EncodedImages(shown, features, _leaders(batch, images, shown.device))

    def _through(self, part: str, images: Sequence[bytes], encode: Encode) -> list[torch.Tensor]:
        """What `encode` makes of all images, asked for those that are neither remembered nor there twice."""
        first = {image: place for place, image in reversed(list(enumerate(images)))}
        memory = self.memory if len(first) > 1 else None  # see below
        rows = {image: row for image in first if memory is not None and (row := memory.known(part, image)) is not None}
        new = sorted(place for image, place in first.items() if image not in rows)
        if memory is None or not rows:
            made = encode(new)
            order = torch.tensor([new.index(first[image]) for image in images], device=made[0].device)
            found = [column.index_select(0, order) for column in made]
            self._keep(memory, part, [images[place] for place in new], made)
            return found
        if new:
            # Products of one row take other kernels with other last bits: a lone image is encoded beside another one, or the figures of an
            # evaluation would hang on what is remembered. So an image alone in its batch is not remembered either.
            asked = new if len(new) > 1 else [*new, next(place for place in first.values() if place not in new)]
            made = encode(asked)
            kept = [images[place] for place in new]
            rows.update(zip(kept, zip(*(column[: len(new)] for column in made), strict=True), strict=True))
            self._keep(memory, part, kept, made)
        return [torch.stack(column) for column in zip(*(rows[image] for image in images), strict=True)]

    @staticmethod
    def _keep(memory: ImageMemory | None, part: str, images: list[bytes], made: Sequence[torch.Tensor]) -> None:
        if memory is not None:
            for k, image in enumerate(images):
                memory.keep(part, image, tuple(column[k].clone() for column in made))


def _image_keys(batch: Batch) -> list[bytes]:
    """One for each image, equal where pixels and place in the square are."""
    sam = batch.sam_pixels if batch.sam_pixels is not None else batch.vision_pixels[:, :, :0]
    return [
        hashlib.blake2b(pixels.contiguous().numpy().tobytes() + fine.contiguous().numpy().tobytes() + repr(box).encode()).digest()
        for pixels, fine, box in zip(batch.vision_pixels.cpu(), sam.cpu(), batch.letterboxes, strict=True)
    ]


def _leaders(batch: Batch, images: Sequence[bytes], device: torch.device) -> torch.Tensor:
    ends = [0]
    for records in batch.records:
        ends.append(ends[-1] + len(records[0].images))
    of_row = [tuple(images[start:end]) for start, end in pairwise(ends)]
    return torch.tensor([of_row.index(row) for row in of_row], device=device)


def _size(row: tuple[torch.Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in row)
