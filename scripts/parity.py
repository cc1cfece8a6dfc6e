"""Differences to the published code, per golden tensor: prints them and writes docs/parity.md.

python scripts/parity.py [--preprocessing FOLDER]   (images of the preprocessing fixture are not part of this project)
"""

import argparse
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import medplib  # noqa: F401  (before anything that imports torchvision)
from tests.parity import golden
from tests.parity.fixtures import Row
from tests.parity.golden_metrics import metric_rows
from tests.parity.golden_preprocessing import preprocessing_rows
from tests.parity.golden_sam import sam_rows

HEAD = """# Parity with the published code

Written by `python scripts/parity.py --preprocessing FOLDER`. Golden values come from the published MedPLIB code (commit 5ab54bc) at tiny
random size in float32 on a CPU; this project runs the same weights and inputs, with `legacy: true` where it departs on purpose
([differences.md](differences.md)). Difference: largest absolute one; relative for losses and gradient norms; 0 or 1 for things that are
equal or not. Goal and tolerance are those of the golden values (noise of the same code with another number of threads: 5e-6).

"""


def table(rows: Iterable[Row]) -> tuple[str, bool]:
    """A Markdown table, and whether every row reaches its goal."""
    lines, good = ["| item | quantity | difference | goal | tolerance | |", "|---|---|---|---|---|---|"], True
    for row in rows:
        reached = row.difference <= row.goal
        good &= reached
        verdict = "reached" if reached else "within tolerance" if row.difference <= row.tolerance else "**missed**"
        lines.append(f"| {row.item} | {row.quantity} | {row.difference:.1e} | {row.goal:g} | {row.tolerance:g} | {verdict} |")
    return "\n".join(lines) + "\n", good


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preprocessing", type=Path, help="folder with the real images of the preprocessing fixture")
    arguments = parser.parse_args()
    fixtures = ("llm_dense", "llm_moe")
    rows = chain(
        sam_rows(),
        *(golden.forward_rows(folder) for folder in fixtures),
        golden.forward_rows("llm_moe", top_k=2),
        *(golden.loss_rows(folder) for folder in fixtures),
        golden.loss_rows("llm_moe", top_k=2),
        *(golden.generation_rows(kind) for kind in ("dense", "moe")),
        golden.gating_rows(),
        metric_rows(),
        preprocessing_rows(arguments.preprocessing) if arguments.preprocessing else (),
    )
    text, good = table(rows)
    (ROOT / "docs" / "parity.md").write_text(HEAD + text)
    print(text)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
