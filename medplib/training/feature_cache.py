"""Features of a frozen image encoder, kept on disk: each image is encoded once in a run, or in several runs with the same encoder.

At 7B a SAM encoder at 256 pixels is a fortieth of a step's arithmetic, at 1024 pixels (SAM) most of it. Images that augmentation changes
are other images: they are encoded and kept as well, until the room is used up.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medplib.errors import InputError
from medplib.models.features import ImageFeatures, weights_hash
from medplib.models.medplib import MedPLIB
from medplib.paths import atomic_path
from medplib.types import Letterbox

log = logging.getLogger(__name__)

Encode = Callable[[torch.Tensor, Sequence[Letterbox]], ImageFeatures]


class FeatureCache:
    """A folder of encoded images; its name below `root` is a hash of the encoder, so that another encoder finds nothing of this one's.

    Args:
        root: folder; made when needed.
        encoder_sha256: what the features depend on besides the image.
        gigabytes: what is written at most; then images are encoded and not kept, said once.
    """

    def __init__(self, root: Path, *, encoder_sha256: str, gigabytes: float) -> None:
        self.folder = Path(root) / encoder_sha256[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.left = gigabytes * 1e9 - sum(path.stat().st_size for path in self.folder.rglob("*.safetensors"))
        self.found = self.made = 0

    @torch.no_grad()
    def through(self, sam_pixels: torch.Tensor, letterboxes: Sequence[Letterbox], encode: Encode) -> ImageFeatures:
        """The features of I images, (I, 3, S, S) uint8 with their letterboxes; `encode` is asked for those that are not there."""
        paths = [self._path(pixels, box) for pixels, box in zip(sam_pixels.cpu(), letterboxes, strict=True)]
        rows: dict[Path, dict[str, torch.Tensor]] = {}
        for path in dict.fromkeys(paths):
            row = self._read(path, sam_pixels.device)
            if row is not None:
                rows[path] = row
        new = [i for i, path in enumerate(paths) if path not in rows and path not in paths[:i]]
        self.found, self.made = self.found + len(paths) - len(new), self.made + len(new)
        if new:
            made = encode(sam_pixels[new], [letterboxes[i] for i in new])
            for k, i in enumerate(new):
                rows[paths[i]] = _row(made, k)
                self._write(paths[i], rows[paths[i]])
        return _stack([rows[path] for path in paths])

    def _path(self, pixels: torch.Tensor, box: Letterbox) -> Path:
        name = hashlib.sha256(pixels.contiguous().numpy().tobytes() + repr(box).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _read(self, path: Path, device: torch.device) -> dict[str, torch.Tensor] | None:
        try:
            return load_file(path, device=str(device))
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            log.warning("%s is damaged (%s): the image is encoded again", path, str(error).splitlines()[0])
            return None

    def _write(self, path: Path, row: dict[str, torch.Tensor]) -> None:
        if self.left <= 0:
            return
        self.left -= sum(tensor.nbytes for tensor in row.values())
        if self.left <= 0:
            log.warning("%s is full (stage.feature_cache_gb): further images are encoded each time", self.folder.parent)
            return
        try:
            with atomic_path(path) as temporary:
                save_file({name: tensor.cpu().contiguous() for name, tensor in row.items()}, temporary)
        except OSError as error:
            log.warning("%s: %s: further images are encoded each time", path, error.strerror)
            self.left = 0


def _row(features: ImageFeatures, k: int) -> dict[str, torch.Tensor]:
    """Image k of the features, by name of field."""
    skips = {f"skip{i}": skip[k].clone() for i, skip in enumerate(features.skips)}
    return {"embedding": features.embedding[k].clone(), "statistics": features.statistics[k].clone(), **skips}


def _stack(rows: list[dict[str, torch.Tensor]]) -> ImageFeatures:
    def column(name: str) -> torch.Tensor:
        return torch.stack([row[name] for row in rows])

    skips = tuple(column(f"skip{i}") for i in range(len(rows[0]) - 2))
    return ImageFeatures(column("embedding"), skips, column("statistics"))


def keep_features(model: MedPLIB, root: Path, *, gigabytes: float, precision: str, where: str) -> FeatureCache:
    """Let the grounder of a model look up its image features.

    Args:
        model: parts that train have requires_grad set.
        root: see FeatureCache.
        gigabytes: see FeatureCache.
        precision: of the computation; features of another precision are other features.
        where: the option, for errors.

    Raises:
        InputError: there is no grounder, or its image encoder trains, so that its features change.
    """
    if model.grounder is None:
        raise InputError(where=where, expected="a model with a grounder", found="none", remedy="leave the option out")
    encoder = model.grounder.image_encoder
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        raise InputError(where=where, expected="a frozen image encoder", found="one that trains, whose features change",
                         remedy="leave grounder.image_encoder out of stage.train, or leave the option out")  # fmt: skip
    depends = f"{precision} {model.grounder.normaliser.per_image} {weights_hash(encoder)}"
    cache = FeatureCache(root, encoder_sha256=hashlib.sha256(depends.encode()).hexdigest(), gigabytes=gigabytes)
    model.grounder.kept = cache
    return cache
