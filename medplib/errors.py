"""The one error that users meet: which file or record, what was expected, what was found, what to do; and how commands begin."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

_NAME = "medplib.errors.InputError"


class InputError(Exception):
    """A bad input found at a border (reader, config, checkpoint, command line).

    Args:
        where: file, record id or option that is at fault.
        expected: what a valid input looks like.
        found: what was there instead.
        remedy: what the person can do about it; empty when it follows from the rest.
        line: instead of all these, a whole error as another process wrote it.
    """

    def __init__(self, line: str | None = None, *, where: str | Path = "", expected: str = "", found: str = "", remedy: str = "") -> None:
        self.where, self.expected, self.found, self.remedy = str(where), expected, found, remedy
        text = f"{where}: expected {expected}, found {found}" + (f"; {remedy}" if remedy else "")
        # Loader processes hand errors on as one text behind a traceback; its last line is ours.
        super().__init__(" ".join(text.split()) if line is None else line.strip().splitlines()[-1].removeprefix(f"{_NAME}: "))


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; an InputError becomes one line on stderr and exit code 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def command_line() -> list[str]:
    """The words behind the command; `--region-mask` means `--region_mask`."""

    def spelled(word: str) -> str:
        name, equals, value = word.partition("=")
        return f"--{name[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word

    return [spelled(word) for word in sys.argv[1:]]


def run_actions(actions: Callable[..., None] | Mapping[str, Callable[..., None]]) -> None:
    """Call a function, or the one that the first word names, with the options of the command line.

    Raises:
        InputError: the options are not those of the function.
    """
    from jsonargparse import ArgumentError, auto_cli

    try:
        auto_cli(actions, as_positional=False, args=command_line(), exit_on_error=False)
    except ArgumentError as error:
        raise _bad_options(str(error)) from None


class OptionParser(argparse.ArgumentParser):
    """A parser of a few options; what does not parse is an InputError instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """See the class."""
        raise _bad_options(message)


def _bad_options(found: str) -> InputError:
    return InputError(where="command line", expected="known options and valid values", found=found, remedy="see --help")
