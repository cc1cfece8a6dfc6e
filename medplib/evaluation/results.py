"""What an evaluation found, question by question, and the files that keep it, so that an interrupted run goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medplib.errors import InputError
from medplib.evaluation.lines import from_line, to_line, write_lines
from medplib.evaluation.protocols import GroundingProtocol
from medplib.evaluation.segmentation import GroundingScore
from medplib.evaluation.text import TextScore
from medplib.ranks import gathered, rank
from medplib.types import Record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """One line of predictions.jsonl. `task` of Meta; `present` says whether the first asked target is there (None: nothing asked)."""

    record: str
    task: str
    question: str
    reference: str
    text: str
    complete: bool
    lm_logit: float
    presence_logit: float | None
    presence: float | None
    present: bool | None


@dataclass
class Results:
    """All answers and scores of one run, in the order of the records."""

    answers: list[Answered] = field(default_factory=list)
    grounding: list[GroundingScore] = field(default_factory=list)
    text: list[TextScore] = field(default_factory=list)

    def add(self, more: Results) -> None:
        """Append those of `more`."""
        self.answers += more.answers
        self.grounding += more.grounding
        self.text += more.text

    def of(self, protocol: GroundingProtocol) -> list[GroundingScore]:
        """The grounding scores of one protocol."""
        return [score for score in self.grounding if score.protocol == protocol.name]

    def only(self, records: Sequence[Record]) -> Results | None:
        """Those of some records; None where one of them was not asked."""
        ids = {record.id for record in records}
        if not ids <= {answer.record for answer in self.answers}:
            return None
        kept = [[item for item in items if item.record in ids] for items in (self.answers, self.grounding, self.text)]
        return Results(*kept)


class ResultStore:
    """predictions.jsonl, grounding.jsonl and text.jsonl of a run in the folder `out`; run.json says of which one (`key`).

    Every rank appends to files of its own; whoever opens the folder next, or finishes it, puts them together.

    Raises:
        InputError: the folder holds another run, or a line that cannot be read.
    """

    def __init__(self, out: Path, key: dict[str, str]) -> None:
        self.out = out
        mine = self._opened(key) if rank() == 0 else Results()
        self.known = Results()
        """What had been answered before."""
        for found in gathered([mine]):
            self.known.add(found)

    def append(self, scored: Results) -> None:
        """Add a batch; the answers go last."""
        for name, lines in reversed(_named(scored)):
            with self._file(name, rank()).open("a", encoding="utf-8") as file:
                file.write("".join(to_line(line) + "\n" for line in lines))

    def finish(self, results: Results) -> None:
        """Keep what all ranks found, in the order of `results`: the same files however many ranks there were."""
        if rank() == 0:
            self._write(results)
        gathered([])  # nobody goes on to files that are not there yet

    def _opened(self, key: dict[str, str]) -> Results:
        run = self.out / "run.json"
        self.out.mkdir(parents=True, exist_ok=True)
        if run.exists() and json.loads(run.read_text()) != key:
            raise InputError(where=self.out, expected="results of this very run, or an empty folder", found="results of another run",
                             remedy="choose another --out or remove it")  # fmt: skip
        run.write_text(json.dumps(key, indent=1) + "\n")
        known, records = Results(), set()
        for index in sorted({0, *self._others()}):
            answers, grounding, text = (self._read(self._file(name, index), cls) for name, cls in _FILES)
            # The answer is written last: scores without it belong to a batch that was cut off.
            new = {answer.record for answer in answers} - records
            known.add(Results(*([item for item in items if item.record in new] for items in (answers, grounding, text))))
            records |= new
        if records:
            log.info("%s: going on after %d records", self.out, len(records))
        self._write(known)
        return known

    def _write(self, results: Results) -> None:
        for name, lines in _named(results):
            write_lines(self._file(name, 0), lines)
        for index in self._others():
            for name, _ in _FILES:
                self._file(name, index).unlink(missing_ok=True)

    def _others(self) -> set[int]:
        """The ranks other than 0 that have files here."""
        return {int(path.name.split(".")[1].removeprefix("rank")) for path in self.out.glob("*.rank[0-9]*.jsonl")}

    def _file(self, name: str, index: int) -> Path:
        return self.out / (f"{name}.rank{index}.jsonl" if index else f"{name}.jsonl")

    @staticmethod
    def _read(path: Path, cls: type) -> list:
        if not path.exists():
            return []
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0]  # a line that was cut off ends without a line break
        return [from_line(cls, line, where=f"{path}:{n}") for n, line in enumerate(whole.split("\n"), 1) if line]


_FILES = (("predictions", Answered), ("grounding", GroundingScore), ("text", TextScore))


def _named(results: Results) -> list[tuple[str, list]]:
    """Name of the file and lines of it, in the order of _FILES."""
    return [(name, lines) for (name, _), lines in zip(_FILES, (results.answers, results.grounding, results.text), strict=True)]
