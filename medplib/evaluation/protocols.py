"""What is counted and how, as data: the protocol of the published MedPLIB evaluation and a strict one. No metric branches on a name.

`UPSTREAM` follows the evaluation script of arXiv 2412.09278 so that a number can stand beside published ones; `STRICT` is what we report.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True)
class GroundingProtocol:
    """How a probability map and a target become one score.

    Args:
        name: stored with every score and figure.
        threshold: a pixel is predicted when its float32 probability is strictly above it.
        first_target_only: score only the first target of a record; the others are counted as `not_first`.
        absent_apart: score absent targets in a block of their own; False leaves them out, counted.
        empty_target_is_absent: a target mask without a pixel counts as absent; False scores it by `iou_of_empty`.
        iou_of_empty: IoU and Dice where prediction and target are both empty.
        use_fallback: where there is no `<SEG>`, score the case's fallback mask if it has one instead of an empty prediction.
        surface_tolerance: of surface Dice, in mm where the image states its spacing, in pixels where it does not; None = not scored.
    """

    name: str
    threshold: float
    first_target_only: bool
    absent_apart: bool
    empty_target_is_absent: bool
    iou_of_empty: float
    use_fallback: bool
    surface_tolerance: float | None

    @property
    def policy(self) -> str:
        """Threshold and empty policy in words, for the published figure."""
        parts = [
            f"probability > {self.threshold} in float32 at original resolution",
            "first target of a record only" if self.first_target_only else "every target",
            "absent targets scored apart" if self.absent_apart else "absent targets left out",
            "fallback mask where <SEG> is missing, else 0" if self.use_fallback else "missing <SEG> on a present target = 0",
        ]
        if self.empty_target_is_absent:
            parts.append("target without a pixel = absent")
        else:
            parts.append(f"prediction and target both empty = {self.iou_of_empty:g}")
        return "; ".join(parts)

    @property
    def surface_policy(self) -> str:
        """The same with the tolerance of surface Dice, where the protocol scores it."""
        if self.surface_tolerance is None:
            return self.policy
        within = f"outlines within {self.surface_tolerance:g} mm, or pixels where the image states no spacing"
        return f"{self.policy}; {within}; empty prediction = 0"


UPSTREAM = GroundingProtocol(
    name="upstream",
    threshold=0.1,
    first_target_only=True,
    absent_apart=False,
    empty_target_is_absent=False,
    iou_of_empty=0.0,
    use_fallback=True,
    surface_tolerance=None,
)
"""Plain mean over images of IoU and of Dice = 2 IoU / (1 + IoU), the same number as 2 |A and B| / (|A| + |B|)."""

STRICT = GroundingProtocol(
    name="strict",
    threshold=0.5,
    first_target_only=False,
    absent_apart=True,
    empty_target_is_absent=True,
    iou_of_empty=0.0,
    use_fallback=False,
    surface_tolerance=2.0,
)
"""Every target at the usual threshold; what is not there is never mixed into Dice."""


def upstream_modality(file_name: str) -> str:
    """The group that the published evaluation puts a file in: its name before the first underscore (`x_ray--...png` is `x`)."""
    return PurePath(file_name).name.split("_", 1)[0]
