"""The one error that users meet: which file or record, what was expected, what was found, what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


class InputError(Exception):
    """A bad input found at a border (reader, config, checkpoint, command line).

    Args:
        where: file, record id or option that is at fault.
        expected: what a valid input looks like.
        found: what was there instead.
        remedy: what the person can do about it; empty when it follows from the rest.
    """

    def __init__(self, *, where: str | Path, expected: str, found: str, remedy: str = "") -> None:
        self.where, self.expected, self.found, self.remedy = str(where), expected, found, remedy
        text = f"{where}: expected {expected}, found {found}" + (f"; {remedy}" if remedy else "")
        super().__init__(" ".join(text.split()))


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; an InputError becomes one line on stderr and exit code 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
