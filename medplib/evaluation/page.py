"""The report page of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medplib.evaluation.figures import NamedFigure
from medplib.evaluation.report import Gallery, Report, Table, figure_table, write_report
from medplib.lineage import Lineage, ancestry


def evaluation_page(path: Path, figures: Sequence[NamedFigure], galleries: Sequence[Gallery], lineage: Lineage) -> None:
    """Write the page: headline figures and controls first, then every block, then pictures and ancestry."""
    blocks: dict[str, list[NamedFigure]] = {}
    for item in figures:
        parts = item.name.split(".")
        title = ".".join(parts[:-1]) if not any(p.startswith("by_") for p in parts) else ".".join(parts[: _by(parts) + 1])
        blocks.setdefault(title, []).append(item)
    tables: list[Table] = [_table(title, blocks[title]) for title in sorted(blocks, key=_order)]
    notes = ("Masks are drawn on the original image; figures are fractions of 1 with 95 % intervals.",)
    write_report(path, Report("medplib evaluation", tuple(tables), tuple(galleries), notes, appendix="\n".join(ancestry(lineage))))


def _by(parts: Sequence[str]) -> int:
    return next(i for i, part in enumerate(parts) if part.startswith("by_"))


def _order(title: str) -> tuple[int, str]:
    ranks = ("grounding.in_domain", "grounding.zero_shot", "vqa", "controls")
    for rank, prefix in enumerate(ranks):
        if title == prefix or (prefix == "controls" and title.startswith(prefix)):
            return rank, title
    return len(ranks) + (title.count(".by_") > 0) + (title == "seconds"), title


def _table(title: str, items: Sequence[NamedFigure]) -> Table:
    return figure_table(
        title, [(item.name[len(title) + 1 :] if item.name.startswith(title + ".") else item.name, item.figure) for item in items]
    )
