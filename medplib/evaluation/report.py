"""A report that is one HTML file: tables of figures with their intervals, a gallery of overlays, and the rules behind every number.

Nothing is loaded from elsewhere (a content policy in the page forbids it), every text is escaped, images are embedded as PNG.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from medplib.errors import InputError
from medplib.evaluation.figures import Figure
from medplib.evaluation.report_style import STYLE
from medplib.paths import atomic_path

_LONGEST_SIDE = 640  # of an embedded image; a gallery is for judging by eye, and a page of full-size scans would not open

Cell = str | int | float | Figure | None


@dataclass(frozen=True)
class Table:
    """A table: the first column names the row. A Figure shows value, interval and n; None is shown as a dash."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """An image, as (H, W) or (H, W, 3) uint8 or as the path of an image file, and what it shows."""

    image: np.ndarray | Path
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Pictures under one heading."""

    title: str
    pictures: tuple[Picture, ...]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that goes on the page, in this order: notes, tables, galleries, appendix (ancestry, in lines)."""

    title: str
    tables: tuple[Table, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    notes: tuple[str, ...] = ()
    appendix: str = ""


def write_report(path: Path, report: Report) -> None:
    """Write the page, atomically.

    Raises:
        InputError: a row has another number of cells than the table has columns, or an image cannot be read.
    """
    page = render(report)
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(report: Report) -> str:
    """The page as HTML text."""
    body = [f"<h1>{escape(report.title)}</h1>", *(f"<p class=note>{escape(note)}</p>" for note in report.notes)]
    body += [_table(table) for table in report.tables]
    body += [_gallery(gallery) for gallery in report.galleries]
    body += [f"<details><summary>Ancestry</summary><pre>{escape(report.appendix)}</pre></details>"] if report.appendix else []
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n" + "\n".join(body) + "\n</main>\n"
        "</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise InputError(
                where=f"table {table.title!r}", expected=f"{len(table.columns)} cells per row", found=f"{len(row)} in {row[:1]}"
            )
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{_cell(row[0])}</th>{"".join(f"<td>{_cell(c)}</td>" for c in row[1:])}</tr>\n' for row in table.rows
    )
    notes = ([table.note] if table.note else []) + _rules(table)
    below = "".join(f"<p class=rule>{escape(note)}</p>" for note in notes)
    return (
        f"<section><h2>{escape(table.title)}</h2>\n<div class=scroll><table><thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}</tbody></table></div>{below}</section>"
    )


def _cell(cell: Cell) -> str:
    match cell:
        case None:
            return "<span class=none>–</span>"
        case Figure():
            return _figure(cell)
        case float():
            return f"{cell:.4g}"
        case _:
            return escape(str(cell))


def _figure(figure: Figure) -> str:
    about = escape(f"{figure.metric}, {figure.aggregation}", quote=True)
    interval = "" if figure.ci95 is None else f"<span class=ci>{figure.ci95[0]:.3f} to {figure.ci95[1]:.3f}</span>"
    return (
        f'<span class=figure title="{about}"><b>{figure.value:.3f}</b>{interval}<span class=n>n = {figure.n}</span>{_strip(figure)}</span>'
    )


def _strip(figure: Figure) -> str:
    """The value and its interval on a line from 0 to 1, drawn; nothing for numbers that lie elsewhere."""
    if figure.ci95 is None or not all(0 <= v <= 1 for v in (figure.value, *figure.ci95)):
        return ""
    low, high = (100 * bound for bound in figure.ci95)
    return (
        '<svg class=strip viewBox="-2 0 104 8" aria-hidden="true"><line class=axis x1="0" x2="100" y1="4" y2="4"/>'
        f'<line class=range x1="{low:.1f}" x2="{high:.1f}" y1="4" y2="4"/><circle cx="{100 * figure.value:.1f}" cy="4" r="2.4"/></svg>'
    )


def _rules(table: Table) -> list[str]:
    """Each protocol, policy and kind of interval in the table, once."""
    figures = [cell for row in table.rows for cell in row if isinstance(cell, Figure)]
    policies = dict.fromkeys(f"Protocol {f.protocol}: {f.policy}." for f in figures)
    # The number of patients differs from cell to cell; the method is the same.
    methods = dict.fromkeys(f.interval.split(", clusters=")[0] for f in figures if f.interval)
    return [*policies, *([f"95 % intervals: {'; '.join(methods)}."] if methods else [])]


def _gallery(gallery: Gallery) -> str:
    pictures = "\n".join(
        f'<figure><img src="data:image/png;base64,{_png(picture)}" alt="{escape(picture.caption, quote=True)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in gallery.pictures
    )
    note = f"<p class=rule>{escape(gallery.note)}</p>" if gallery.note else ""
    return f"<section><h2>{escape(gallery.title)}</h2>{note}\n<div class=gallery>\n{pictures}\n</div></section>"


def _png(picture: Picture) -> str:
    """The picture as base64 PNG, its longest side at most 640 pixels. Re-encoded, so no metadata of a file travels along."""
    if isinstance(picture.image, np.ndarray):
        array = picture.image
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or not array.size:
            raise InputError(where=picture.caption, expected="a uint8 image (H, W) or (H, W, 3)", found=f"{array.dtype} {array.shape}")
        image = Image.fromarray(array)
    else:
        try:
            with Image.open(picture.image) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError) as error:
            raise InputError(where=picture.image, expected="an image file", found=type(error).__name__) from None
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    image.info.clear()
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def figure_table(title: str, rows: Sequence[tuple[str, Figure | None]], note: str = "") -> Table:
    """A table of two columns: a name and its figure."""
    return Table(title, ("", "value, 95 % interval, n"), tuple(rows), note)
