"""One prediction against one target: pixel counts, Dice, IoU, and the score of a grounding case that is stored as one JSON line.

Masks are (H, W) at original size. Dice and IoU are fractions of 1; means, intervals and groups are made in `grounding.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from medplib.errors import InputError
from medplib.evaluation.protocols import GroundingProtocol
from medplib.evaluation.surface import surface_dice


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of a prediction against a target."""

    intersection: int
    union: int
    pred_pixels: int
    target_pixels: int


def overlap(prediction_HW: np.ndarray, target_HW: np.ndarray) -> Overlap:
    """Pixel counts of two masks of one shape; bool, or integers in which every non-zero pixel counts (a uint8 255 mask too).

    Raises:
        InputError: shapes differ, or an array is of floats (threshold it first, by a stated threshold).
    """
    if prediction_HW.shape != target_HW.shape:
        raise InputError(
            where="mask overlap", expected=f"a prediction of the target's shape {target_HW.shape}", found=str(prediction_HW.shape)
        )
    prediction = np.ascontiguousarray(_as_bool(prediction_HW)).view(np.uint8)
    target = np.ascontiguousarray(_as_bool(target_HW)).view(np.uint8)
    # Sums of differences of zeros and ones are counts, exact in float64, and the fastest that OpenCV and NumPy have
    pred_pixels, target_pixels = int(cv2.norm(prediction, cv2.NORM_L1)), int(cv2.norm(target, cv2.NORM_L1))
    total, one_only = pred_pixels + target_pixels, int(cv2.norm(prediction, target, cv2.NORM_L1))
    return Overlap((total - one_only) // 2, (total + one_only) // 2, pred_pixels, target_pixels)


def iou(counts: Overlap, *, empty: float) -> float:
    """Intersection over union; `empty` where both masks are empty."""
    return counts.intersection / counts.union if counts.union else empty


def dice(counts: Overlap, *, empty: float) -> float:
    """2 |A and B| / (|A| + |B|) = 2 IoU / (1 + IoU); `empty` where both masks are empty."""
    total = counts.pred_pixels + counts.target_pixels
    return 2 * counts.intersection / total if total else empty


@dataclass(frozen=True)
class LisaScores:
    """In-training scores of LISA (arXiv 2308.00692): gIoU = mean of per-image IoU, cIoU = sum of intersections / sum of unions.

    Both empty counts as IoU 1 in gIoU and adds nothing to cIoU. cIoU is dominated by large targets. 0 without any case or any union.
    """

    giou: float
    ciou: float
    n: int


def lisa_scores(counts: Iterable[Overlap]) -> LisaScores:
    """Mean and cumulative IoU with the published guards: union + 1e-5 and count + 1e-5 for gIoU, sum of unions + 1e-10 for cIoU."""
    table = np.array([(c.intersection, c.union) for c in counts], np.float64).reshape(-1, 2)
    intersections, unions = table[:, 0], table[:, 1]
    per_image = np.where(unions == 0, 1.0, intersections / (unions + 1e-5))
    return LisaScores(float(per_image.sum() / (len(table) + 1e-5)), float(intersections.sum() / (unions.sum() + 1e-10)), len(table))


@dataclass(frozen=True)
class GroundingCase:
    """One named target that was asked for, and what the model answered. Arrays are (H, W) at original size.

    Args:
        id: names the case in errors and in the stored line.
        record: id of the record it belongs to; `index` is the place of the target in that record, 0 for the first.
        source: data set; patients are told apart by (source, patient).
        patient: cases of one patient are resampled together; empty when unknown, then each record stands for itself.
        modality: group of the per-modality means.
        name: what was asked for.
        index: place of the target among the targets of its record.
        target: bool mask, None when the thing is absent from the image.
        mask_probability: float in [0, 1], None when the answer has no `<SEG>` for this target (a refusal).
        presence: probability that the target is present, None when the model has no such score.
        quality: predicted IoU, None when the model has no such score.
        fallback_probability: mask that a protocol with `use_fallback` scores where `mask_probability` is None.
        spacing: distance between rows and between columns in mm, None when the image does not say.
    """

    id: str
    record: str
    source: str
    patient: str
    modality: str
    name: str
    index: int
    target: np.ndarray | None
    mask_probability: np.ndarray | None
    presence: float | None = None
    quality: float | None = None
    fallback_probability: np.ndarray | None = None
    spacing: tuple[float, float] | None = None


Status = Literal["present", "absent", "not_first", "absent_left_out"]


@dataclass(frozen=True)
class GroundingScore:
    """What one protocol makes of one case: counts, from which every figure is computed. Stored by `lines.write_lines`.

    `status`: `present` enters Dice and IoU, `absent` the absent block, the other two are left out by the protocol and only counted.
    `segmented`: the answer has a `<SEG>` for it. `image_pixels` is 0 where neither a target nor a prediction has a size. `surface_dice` is
    None unless the protocol scores it and the target is present; `in_mm`: its tolerance was in mm, not in pixels.
    """

    protocol: str
    id: str
    record: str
    source: str
    patient: str
    modality: str
    name: str
    index: int
    status: Status
    segmented: bool
    fallback: bool
    intersection: int
    union: int
    pred_pixels: int
    target_pixels: int
    image_pixels: int
    iou: float
    dice: float
    presence: float | None
    quality: float | None
    surface_dice: float | None = None
    in_mm: bool = False

    @property
    def cluster(self) -> tuple[str, str, str]:
        """What is resampled as a whole: the patient of a source, or the record where the patient is unknown."""
        return (self.source, self.patient, "") if self.patient else (self.source, "", self.record)


def score_case(case: GroundingCase, protocol: GroundingProtocol) -> GroundingScore:
    """Score one case once; nothing else ever needs its masks.

    Raises:
        InputError: shapes differ, a probability is outside [0, 1] or not a number, or the target is not a mask.
    """
    target = None if case.target is None else _as_bool(case.target, case.id)
    absent = target is None or (protocol.empty_target_is_absent and not target.any())
    fallback = protocol.use_fallback and case.mask_probability is None and case.fallback_probability is not None
    probability = case.fallback_probability if fallback else case.mask_probability
    prediction = None if probability is None else binarise(probability, protocol.threshold, where=case.id)
    for score in (case.presence, case.quality):
        if score is not None and not 0 <= score <= 1:
            raise InputError(where=case.id, expected="presence and quality in [0, 1]", found=str(score))
    counts = _count(prediction, target, case.id)
    sized = target if target is not None else prediction
    status = _status(case, protocol, absent=absent)
    return GroundingScore(
        protocol=protocol.name,
        id=case.id,
        record=case.record,
        source=case.source,
        patient=case.patient,
        modality=case.modality,
        name=case.name,
        index=case.index,
        status=status,
        segmented=case.mask_probability is not None,
        fallback=fallback,
        intersection=counts.intersection,
        union=counts.union,
        pred_pixels=counts.pred_pixels,
        target_pixels=counts.target_pixels,
        image_pixels=0 if sized is None else sized.size,
        iou=iou(counts, empty=protocol.iou_of_empty),
        dice=dice(counts, empty=protocol.iou_of_empty),
        presence=None if case.presence is None else float(case.presence),
        quality=None if case.quality is None else float(case.quality),
        surface_dice=_surface(prediction, target, case, protocol) if status == "present" else None,
        in_mm=case.spacing is not None,
    )


def _surface(prediction: np.ndarray | None, target: np.ndarray, case: GroundingCase, protocol: GroundingProtocol) -> float | None:
    if protocol.surface_tolerance is None:
        return None
    if prediction is None:
        return 0.0 if target.any() else protocol.iou_of_empty
    return surface_dice(prediction, target, tolerance=protocol.surface_tolerance, spacing=case.spacing, empty=protocol.iou_of_empty)


def binarise(probability_HW: np.ndarray, threshold: float, *, where: str) -> np.ndarray:
    """Probability (H, W) -> bool (H, W), strictly above `threshold`, compared in float32 as the published evaluation does.

    Raises:
        InputError: not a floating array in [0, 1]; a NaN would otherwise become background without a word.
    """
    if probability_HW.ndim != 2 or probability_HW.dtype.kind != "f" or probability_HW.size == 0:
        raise InputError(
            where=where, expected="mask probabilities (H, W) as floats", found=f"{probability_HW.dtype} {probability_HW.shape}"
        )
    low, high = probability_HW.min(), probability_HW.max()  # both are NaN if any value is
    if not (low >= 0 and high <= 1):
        raise InputError(
            where=where,
            expected="mask probabilities in [0, 1]",
            found=f"values from {low} to {high}",
            remedy="apply the sigmoid to the logits; NaN means that the model diverged",
        )
    return probability_HW.astype(np.float32, copy=False) > np.float32(threshold)


def _status(case: GroundingCase, protocol: GroundingProtocol, *, absent: bool) -> Status:
    if protocol.first_target_only and case.index > 0:
        return "not_first"
    if absent:
        return "absent" if protocol.absent_apart else "absent_left_out"
    return "present"


def _count(prediction: np.ndarray | None, target: np.ndarray | None, where: str) -> Overlap:
    """Counts in which a missing prediction or a missing target is an empty mask."""
    if prediction is not None and target is not None:
        if prediction.shape != target.shape:
            raise InputError(where=where, expected=f"a prediction of the target's size {target.shape}", found=str(prediction.shape))
        return overlap(prediction, target)
    pred_pixels = 0 if prediction is None else int(np.count_nonzero(prediction))
    target_pixels = 0 if target is None else int(np.count_nonzero(target))
    return Overlap(0, pred_pixels + target_pixels, pred_pixels, target_pixels)


def _as_bool(mask_HW: np.ndarray, where: str = "mask overlap") -> np.ndarray:
    if mask_HW.ndim != 2 or mask_HW.dtype.kind not in "bui" or mask_HW.size == 0:
        raise InputError(where=where, expected="a mask (H, W) of bool or integers", found=f"{mask_HW.dtype} {mask_HW.shape}")
    return mask_HW if mask_HW.dtype == np.bool_ else mask_HW != 0
