"""From the labels that data sets use to the names that questions use."""

from __future__ import annotations

import json
import re
from pathlib import Path

from medplib.errors import InputError


def clean_label(label: str) -> str:
    """A label as a person would write it: remarks in brackets dropped, underscores as spaces ("nucleus_(instance)" -> "nucleus")."""
    text = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", label).replace("_", " ")
    return " ".join(text.split()).strip(" ,;:.")


class LabelNames:
    """Turns labels into names.

    Args:
        file: optional JSON {"label": "name"}; a label is looked up as written, then cleaned.
        strict: with a file, whether a label that it does not have is an error; otherwise it is only cleaned.

    Raises:
        InputError: the file is no JSON object of texts.
    """

    def __init__(self, file: Path | None = None, strict: bool = False) -> None:
        self.file, self.strict = file, strict
        self._names = {} if file is None else _read_map(Path(file))

    def name(self, label: str, *, where: str) -> str:
        """The name of a label.

        Raises:
            InputError: nothing is left of the label, or it is unknown and the map is strict.
        """
        cleaned = clean_label(label)
        if self.strict and label not in self._names and cleaned not in self._names:
            raise InputError(where=where, expected=f"a label of {self.file}", found=repr(label), remedy="add it there")
        name = self._names.get(label, self._names.get(cleaned, cleaned))
        if not name or any(mark in name for mark in "<>"):
            raise InputError(where=where, expected="a label with words, without < and >", found=repr(label))
        return name


def _read_map(file: Path) -> dict[str, str]:
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(where=file, expected='a readable JSON file {"label": "name"}', found=str(error)) from error
    if not isinstance(names, dict) or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise InputError(where=file, expected='JSON {"label": "name"}', found="other entries")
    return names
