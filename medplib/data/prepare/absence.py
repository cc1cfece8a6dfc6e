"""Which names may be asked for where they are not.

What a data set did not label may still be in its images, so a name counts as absent only where that is known: the manifest says so, the
source labels everything it names (declared), or the name belongs to a kind of image or a part of the body that this image does not show.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from medplib.data.prepare.decode import ImageFacts

# These show the inside of one and the same body: what one of them labels may be visible, unlabelled, in another.
_SECTIONS = {"ct", "cta", "cbct", "mr", "mri", "pet", "spect", "x", "xray", "ultrasound", "us", "radiograph", "radiography", "mammography"}


def kind_of(modality: str) -> str:
    """Kind of image; modalities of one kind may show the same structures.

    "section" for radiological ones, else the first word ("microscopy-EM" -> "microscopy").
    """
    word = (re.findall(r"[a-z0-9]+", modality.lower()) or [""])[0]
    return "section" if word in _SECTIONS else word


@dataclass(frozen=True)
class AbsentNames:
    """Names that are not in an image: `hard` could have been there (stated, or of an exhaustively labelled source), `easy` could not."""

    hard: tuple[str, ...]
    easy: tuple[str, ...]


class AbsenceRules:
    """Decides what is known to be absent.

    Args:
        images: all images of the data set; they tell in which kinds of image and parts of the body a name occurs.
        exhaustive: sources in which every structure that they name is labelled wherever it is visible.
    """

    def __init__(self, images: Sequence[ImageFacts], exhaustive: Collection[str]) -> None:
        self.exhaustive = frozenset(exhaustive)
        self.places: dict[str, set[tuple[str, str]]] = {}
        self.by_source: dict[str, set[str]] = {}
        for image in images:
            for name in (*image.present, *image.absent):
                self.places.setdefault(name, set()).add((kind_of(image.modality), image.anatomy))
                self.by_source.setdefault(image.source, set()).add(name)

    def absent(self, image: ImageFacts) -> AbsentNames:
        """Names known not to be in `image`, sorted."""
        known = set(image.present)
        hard = set(image.absent) | (self.by_source.get(image.source, set()) if image.source in self.exhaustive else set())
        hard -= known
        easy = {name for name in self.places if name not in hard | known and self._impossible(name, image)}
        return AbsentNames(tuple(sorted(hard)), tuple(sorted(easy)))

    def _impossible(self, name: str, image: ImageFacts) -> bool:
        """Whether the name occurs only in other kinds of image or other parts of the body, and no present name resembles it."""
        if any(_words(name) & _words(other) for other in image.present):
            return False  # "lung lower lobe" where "lungs" are labelled
        kind = kind_of(image.modality)
        return all(
            place_kind != kind or bool(anatomy and image.anatomy and anatomy != image.anatomy) for place_kind, anatomy in self.places[name]
        )


def _words(name: str) -> set[str]:
    """Words of a name without sides, in the singular of regular plurals."""
    return {word.removesuffix("s") for word in re.findall(r"[a-z]+", name.lower())} - {"left", "right", "upper", "lower", "of", "the"}
