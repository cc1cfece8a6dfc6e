"""Summaries as report tables: protocols side by side, groups below one another."""

from __future__ import annotations

from collections.abc import Sequence

from medplib.evaluation.figures import Figure
from medplib.evaluation.grounding import AbsentSummary, GroundingSummary, Group
from medplib.evaluation.report import Cell, Table, figure_table
from medplib.evaluation.text import VqaSummary


def grounding_tables(summaries: Sequence[GroundingSummary]) -> tuple[Table, ...]:
    """Overall, per group, absent targets and counts; one column per summary (usually one per protocol), at least one."""
    overall = (
        ("mean Dice over targets", "mdice"),
        ("mean IoU over targets", "miou"),
        ("mean Dice over modalities", "macro_mdice"),
        ("mean IoU over modalities", "macro_miou"),
        ("mean Dice over names", "macro_name_mdice"),
        ("mean Dice over sources", "macro_source_mdice"),
        ("cumulative IoU", "ciou"),
        ("mean surface Dice (NSD) over targets", "mnsd"),
        ("mean surface Dice (NSD) over modalities", "macro_mnsd"),
    )
    columns = ("", *(f"protocol {summary.protocol}" for summary in summaries))
    tables = [Table("Grounding", columns, tuple((label, *(getattr(s, name) for s in summaries)) for label, name in overall))]
    for title, block in (("modality", "by_modality"), ("source", "by_source"), ("name", "by_name"), ("size of target", "by_size")):
        tables.append(_groups(f"Dice by {title}", columns, [getattr(summary, block) for summary in summaries]))
    tables += [_absent(s.protocol, s.absent) for s in summaries if s.absent is not None]
    return (*tables, _counts(columns, summaries))


def vqa_tables(summary: VqaSummary) -> tuple[Table, ...]:
    """Closed and open questions, then both per modality; a table without a figure is left out."""
    blocks = (
        ("Closed questions", [*summary.closed.items(), ("exact, mean over modalities", summary.macro_closed)]),
        ("Open questions", [*summary.open.items(), ("token_f1, mean over modalities", summary.macro_open_f1)]),
        ("Closed questions by modality: exact", [*summary.closed_by_modality.items()]),
        ("Open questions by modality: token F1", [*summary.open_f1_by_modality.items()]),
    )
    return tuple(figure_table(title, rows) for title, rows in blocks if any(figure is not None for _, figure in rows))


def _groups(title: str, columns: tuple[str, ...], blocks: Sequence[dict[str, Group]]) -> Table:
    labels = sorted({label for block in blocks for label in block})
    cells: list[tuple[Cell, ...]] = [(label, *(block[label].mdice if label in block else None for block in blocks)) for label in labels]
    return Table(title, columns, tuple(cells))


def _absent(protocol: str, absent: AbsentSummary) -> Table:
    labels = (
        ("false-positive rate", absent.false_positive_rate),
        ("false-mask rate", absent.false_mask_rate),
        ("false-positive area", absent.false_positive_area),
        ("refusal recall (N-acc)", absent.refusal_recall),
        ("refusal precision", absent.refusal_precision),
        ("present recall (T-acc)", absent.present_recall),
        ("balanced accuracy", absent.balanced_accuracy),
        ("AUROC of the presence score", absent.presence_auroc),
    )
    rows: list[tuple[str, Figure | None]] = list(labels)
    return figure_table(f"Absent targets, protocol {protocol}", rows)


def _counts(columns: tuple[str, ...], summaries: Sequence[GroundingSummary]) -> Table:
    names = list(vars(summaries[0].counts))
    rows = tuple((name.replace("_", " "), *(getattr(s.counts, name) for s in summaries)) for name in names)
    return Table("Where the cases went", columns, rows)
