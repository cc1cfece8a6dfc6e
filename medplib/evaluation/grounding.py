"""From stored scores to published grounding figures: a pure function of the scores, so that a file of them can be summarised again.

Dice and IoU are over present targets only; refusals and false positives have a block of their own (after gRefCOCO, arXiv 2306.00968).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medplib.errors import InputError
from medplib.evaluation.bootstrap import Bootstrap
from medplib.evaluation.figures import Figure, NamedFigure, Rule, key, named
from medplib.evaluation.presence import auroc, auroc_interval
from medplib.evaluation.protocols import GroundingProtocol
from medplib.evaluation.segmentation import GroundingScore

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroundingCounts:
    """Where every score went. total = present + absent + not_first + absent_left_out."""

    total: int
    present: int
    absent: int
    not_first: int
    absent_left_out: int
    missing_seg: int
    """Present targets without a `<SEG>`; they count Dice 0, or the fallback mask's Dice (counted in `fallback`)."""
    fallback: int
    clusters: int
    """Patients behind the present and absent cases."""
    in_mm: int
    """Present targets whose tolerance of surface Dice is in mm, because their image states its spacing; pixels for the others."""
    unknown_patient: int
    """Cases without a patient; each of their records is taken for a patient, which makes intervals too narrow if that is wrong."""


@dataclass(frozen=True)
class Group:
    """Mean Dice and mean IoU over the present targets of one group."""

    mdice: Figure
    miou: Figure


@dataclass(frozen=True)
class AbsentSummary:
    """How the model treats what is not there. `claimed` = the answer has a `<SEG>` for the target.

    false_positive_rate: absent targets that were claimed / absent targets.
    false_mask_rate: absent targets whose thresholded mask has a pixel / absent targets.
    false_positive_area: mean over absent targets of predicted pixels / image pixels; 0 where refused.
    refusal_recall: absent targets refused / absent targets (N-acc, = 1 - false_positive_rate).
    refusal_precision: absent targets refused / all refusals; None when nothing was refused.
    present_recall: present targets claimed / present targets (T-acc); None without present targets.
    balanced_accuracy: mean of present_recall and refusal_recall; None without present targets.
    presence_auroc: of the presence score, over the cases that have one; None unless both kinds have one.
    """

    false_positive_rate: Figure
    false_mask_rate: Figure
    false_positive_area: Figure
    refusal_recall: Figure
    refusal_precision: Figure | None
    present_recall: Figure | None
    balanced_accuracy: Figure | None
    presence_auroc: Figure | None


@dataclass(frozen=True)
class GroundingSummary:
    """Every figure of one protocol on one set of scores. A figure is None where no case is behind it."""

    protocol: str
    counts: GroundingCounts
    mdice: Figure | None
    miou: Figure | None
    ciou: Figure | None
    macro_mdice: Figure | None
    macro_miou: Figure | None
    macro_name_mdice: Figure | None
    macro_source_mdice: Figure | None
    mnsd: Figure | None
    macro_mnsd: Figure | None
    by_modality: dict[str, Group]
    by_source: dict[str, Group]
    by_name: dict[str, Group]
    by_size: dict[str, Group]
    absent: AbsentSummary | None

    def figures(self, prefix: str) -> list[NamedFigure]:
        """All figures under `prefix`, for metrics.json: `<prefix>.mdice`, `<prefix>.by_modality.ct.miou`, `<prefix>.absent...`."""
        single = ("mdice", "miou", "ciou", "macro_mdice", "macro_miou", "macro_name_mdice", "macro_source_mdice", "mnsd", "macro_mnsd")
        items: list[tuple[str, Figure | None]] = [(name, getattr(self, name)) for name in single]
        for block in ("by_modality", "by_source", "by_name", "by_size"):
            for label, group in getattr(self, block).items():
                items += [(f"{block}.{label}.mdice", group.mdice), (f"{block}.{label}.miou", group.miou)]
        if self.absent is not None:
            items += [(f"absent.{name}", figure) for name, figure in vars(self.absent).items()]
        return named(prefix, items)


def summarise_grounding(scores: Sequence[GroundingScore], protocol: GroundingProtocol, bootstrap: Bootstrap) -> GroundingSummary:
    """Summarise the scores of one protocol; at least one score. Intervals are clustered by patient.

    Raises:
        InputError: there is no score, a score is of another protocol, or a case occurs twice.
    """
    _check(scores, protocol)
    present = [s for s in scores if s.status == "present"]
    absent = [s for s in scores if s.status == "absent"]
    counts = _counts(scores)
    dice, iou = Rule("Dice", protocol.name, protocol.policy), Rule("IoU", protocol.name, protocol.policy)
    clusters = [s.cluster for s in present]
    modalities, names = [key(s.modality) for s in present], [key(s.name) for s in present]
    dice_N, iou_N = np.array([s.dice for s in present]), np.array([s.iou for s in present])
    rated = [s for s in present if s.surface_dice is not None]  # all or none: the protocol says
    surface = Rule("surface Dice (NSD)", protocol.name, protocol.surface_policy)
    nsd_N, rated_clusters = np.array([s.surface_dice for s in rated]), [s.cluster for s in rated]
    cumulative = Rule("sum of intersections / sum of unions (cIoU)", protocol.name, protocol.policy)
    return GroundingSummary(
        protocol=protocol.name,
        counts=counts,
        mdice=dice.mean(dice_N, clusters, bootstrap),
        miou=iou.mean(iou_N, clusters, bootstrap),
        ciou=cumulative.ratio([s.intersection for s in present], [s.union for s in present], clusters, bootstrap),
        macro_mdice=dice.macro(dice_N, modalities, clusters, bootstrap, "modalities"),
        macro_miou=iou.macro(iou_N, modalities, clusters, bootstrap, "modalities"),
        macro_name_mdice=dice.macro(dice_N, names, clusters, bootstrap, "names"),
        macro_source_mdice=dice.macro(dice_N, [key(s.source) for s in present], clusters, bootstrap, "sources"),
        mnsd=surface.mean(nsd_N, rated_clusters, bootstrap),
        macro_mnsd=surface.macro(nsd_N, [key(s.modality) for s in rated], rated_clusters, bootstrap, "modalities"),
        by_modality=_groups(present, lambda s: key(s.modality), dice, iou, bootstrap),
        by_source=_groups(present, lambda s: key(s.source), dice, iou, bootstrap),
        by_name=_groups(present, lambda s: key(s.name), dice, iou, bootstrap),
        by_size=_groups(present, _size_bin, dice, iou, bootstrap),
        absent=_absent(present, absent, protocol, bootstrap) if absent else None,
    )


def _check(scores: Sequence[GroundingScore], protocol: GroundingProtocol) -> None:
    if not scores:
        raise InputError(where="grounding scores", expected="at least one score", found="none")
    seen: set[tuple[str, str]] = set()
    for score in scores:
        if score.protocol != protocol.name:
            raise InputError(where=score.id, expected=f"a score of protocol {protocol.name!r}", found=repr(score.protocol))
        if (score.source, score.id) in seen:
            raise InputError(where=score.id, expected="one score per case", found="a second one", remedy="remove the repeated line")
        seen.add((score.source, score.id))


def _counts(scores: Sequence[GroundingScore]) -> GroundingCounts:
    status = [s.status for s in scores]
    used = [s for s in scores if s.status in ("present", "absent")]
    counts = GroundingCounts(
        total=len(scores),
        present=status.count("present"),
        absent=status.count("absent"),
        not_first=status.count("not_first"),
        absent_left_out=status.count("absent_left_out"),
        missing_seg=sum(not s.segmented for s in scores if s.status == "present"),
        fallback=sum(s.fallback for s in scores if s.status == "present"),
        clusters=len({s.cluster for s in used}),
        in_mm=sum(s.in_mm for s in scores if s.status == "present"),
        unknown_patient=sum(not s.patient for s in used),
    )
    _log.info("protocol %s: %s", scores[0].protocol, counts)
    return counts


def _groups(
    scores: Sequence[GroundingScore], label: Callable[[GroundingScore], str], dice: Rule, iou: Rule, bootstrap: Bootstrap
) -> dict[str, Group]:
    members: dict[str, list[GroundingScore]] = {}
    for score in scores:
        members.setdefault(label(score), []).append(score)
    groups = {}
    for name, group in sorted(members.items()):
        clusters = [s.cluster for s in group]
        mdice, miou = dice.mean([s.dice for s in group], clusters, bootstrap), iou.mean([s.iou for s in group], clusters, bootstrap)
        if mdice is not None and miou is not None:  # always: a group has a member
            groups[name] = Group(mdice, miou)
    return groups


def _size_bin(score: GroundingScore) -> str:
    """Share of the image that the target covers; small targets fail first, and means over all sizes hide it."""
    share = score.target_pixels / score.image_pixels
    return "below_1_percent" if share < 0.01 else "1_to_5_percent" if share < 0.05 else "from_5_percent"


def _absent(
    present: Sequence[GroundingScore], absent: Sequence[GroundingScore], protocol: GroundingProtocol, bootstrap: Bootstrap
) -> AbsentSummary:
    def rule(metric: str) -> Rule:
        return Rule(metric, protocol.name, protocol.policy)

    everyone = [*present, *absent]
    clusters, absent_clusters = [s.cluster for s in everyone], [s.cluster for s in absent]
    claimed = np.array([s.segmented for s in absent])
    masked = np.array([s.pred_pixels > 0 for s in absent])
    area = np.array([s.pred_pixels / s.image_pixels if s.pred_pixels else 0.0 for s in absent])
    is_absent = np.array([s.status == "absent" for s in everyone])
    refused = np.array([not s.segmented for s in everyone])
    correct = is_absent == refused

    def over_absent(metric: str, values: np.ndarray) -> Figure:
        figure = rule(metric).mean(values, absent_clusters, bootstrap)
        assert figure is not None  # the caller has at least one absent target
        return figure

    balanced = rule("claimed if present, refused if absent").macro(
        correct, ["absent" if a else "present" for a in is_absent], clusters, bootstrap, "present and absent targets"
    )
    return AbsentSummary(
        false_positive_rate=over_absent("absent target answered with <SEG>", claimed),
        false_mask_rate=over_absent("absent target with a predicted pixel", masked),
        false_positive_area=over_absent("predicted pixels / image pixels on an absent target, 0 where refused", area),
        refusal_recall=over_absent("absent target refused", ~claimed),
        refusal_precision=rule("refusal whose target is absent").ratio(
            is_absent & refused, refused, clusters, bootstrap, "absent refusals / all refusals"
        ),
        present_recall=rule("present target answered with <SEG>").mean(
            [s.segmented for s in present], [s.cluster for s in present], bootstrap
        ),
        balanced_accuracy=balanced if present else None,
        presence_auroc=_presence_auroc(everyone, rule("presence score"), bootstrap),
    )


def _presence_auroc(scores: Sequence[GroundingScore], rule: Rule, bootstrap: Bootstrap) -> Figure | None:
    rated = [s for s in scores if s.presence is not None]
    if len(rated) < len(scores):
        _log.warning("%d of %d cases have no presence score and are not in its AUROC", len(scores) - len(rated), len(scores))
    values = np.array([s.presence for s in rated], np.float64)
    labels = np.array([s.status == "present" for s in rated], bool)
    if labels.all() or not labels.any():
        return None
    interval = auroc_interval(values, labels, [s.cluster for s in rated], bootstrap)
    return replace(rule, policy="ties count one half").plain(auroc(values, labels), len(rated), "AUROC of present against absent", interval)
