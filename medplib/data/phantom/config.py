"""What a person can choose about the built-in data set, and the limits every case obeys."""

from __future__ import annotations

from dataclasses import dataclass

from medplib.errors import InputError

SPLITS = ("train", "val", "test", "zero_shot")

MIN_ANATOMY_FRACTION = 0.02
MIN_FINDING_FRACTION = 0.006
"""A structure that covers a smaller share of the image is taken out of the scene, so that nothing drawn is ambiguous to ask about."""


@dataclass(frozen=True)
class PhantomConfig:
    """Sizes of the data set. The same config gives the same bytes, whatever the number of workers.

    Args:
        seed: root of all randomness.
        train, val, test, zero_shot: images per split.
        volumes: NIfTI volumes with label volumes.
        present_share: share of grounding questions, per modality, region and name, whose structure is visible.
    """

    seed: int = 0
    train: int = 2000
    val: int = 300
    test: int = 250
    zero_shot: int = 200
    volumes: int = 4
    present_share: float = 0.62

    def __post_init__(self) -> None:
        for name in ("seed", *SPLITS, "volumes"):
            if getattr(self, name) < 0:
                raise InputError(where=f"phantom option {name}", expected="a number of at least 0", found=str(getattr(self, name)))
        if not 0.1 <= self.present_share <= 0.9:
            raise InputError(
                where="phantom option present_share",
                expected="a share between 0.1 and 0.9",
                found=str(self.present_share),
            )

    def count(self, split: str) -> int:
        """Images of one split."""
        return {"train": self.train, "val": self.val, "test": self.test, "zero_shot": self.zero_shot}[split]
