"""Runs a predictor over records, scores every answer once and keeps the scores as lines, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from medplib.data.dataset import FileCache, load_records
from medplib.data.encode import Loaded
from medplib.errors import InputError
from medplib.evaluation.lines import from_line, to_line
from medplib.evaluation.protocols import STRICT, UPSTREAM, GroundingProtocol
from medplib.evaluation.segmentation import GroundingCase, GroundingScore, score_case
from medplib.evaluation.text import TextCase, TextScore, text_score
from medplib.inference.predictor import MaskProbability, Prediction, Predictor
from medplib.types import Batch, Record

T, S = TypeVar("T"), TypeVar("S")
log = logging.getLogger(__name__)
PROTOCOLS: tuple[GroundingProtocol, ...] = (UPSTREAM, STRICT)
CLOSED_TASKS = ("vqa_closed", "region")
"""Tasks whose answer is one of few; region questions ask for a name."""


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


@dataclass(frozen=True)
class RunOptions:
    """How records are asked.

    Args:
        batch_size: conversations per forward.
        with_image: False shows a grey image (control for language priors).
        with_fallback: decode a mask for missing `<SEG>` too, as the upstream protocol wants.
        progress: words of the progress bar; empty for none.
    """

    batch_size: int = 16
    with_image: bool = True
    with_fallback: bool = True
    progress: str = "evaluate"


Viewer = Callable[[Loaded, Prediction], None]


def evaluate_records(
    predictor: Predictor, records: Sequence[Record], options: RunOptions, *, out: Path | None = None, viewer: Viewer | None = None
) -> Results:
    """Answer and score all records.

    Args:
        predictor: the model.
        records: each asked by its first question; the last answer is the reference.
        options: see RunOptions.
        out: folder for predictions.jsonl, grounding.jsonl and text.jsonl; what it already holds of the same run is not asked again.
        viewer: is shown every image and prediction (galleries).
    """
    cache, records = FileCache(256), with_unique_ids(records)
    store = None if out is None else _Store(out, _run_key(predictor, records, options))
    results = Results() if store is None else store.results
    done = {answer.record for answer in results.answers}
    # Questions about one image share its features, if they meet in a batch.
    todo = sorted((r for r in records if r.id not in done), key=lambda r: (r.images, len(r.turns[0].text)))
    encoder = predictor.encoder(with_image=options.with_image)
    collate = predictor.collator(encoder)

    def read(chunk: Sequence[Record]) -> tuple[list[Loaded], Batch]:
        loaded = [load_records((record,), cache) for record in chunk]
        return loaded, collate([encoder.encode(item) for item in loaded])

    chunks = [todo[i : i + options.batch_size] for i in range(0, len(todo), options.batch_size)]
    for loaded, batch in tqdm(_ahead(read, chunks), total=len(chunks), desc=options.progress, disable=not options.progress, leave=False):
        grounding = any(item.records[0].meta.task == "grounding" for item in loaded)
        predictions = predictor.predict(batch, with_fallback=options.with_fallback and grounding, scored=grounding)
        scored = Results()
        for item, prediction in zip(loaded, predictions, strict=True):
            _score(item, prediction, scored)
            if viewer is not None:
                viewer(item, prediction)
        results.answers += scored.answers
        results.grounding += scored.grounding
        results.text += scored.text
        if store is not None:
            store.append(scored)
    order = {record.id: i for i, record in enumerate(records)}
    for scores in (results.answers, results.grounding, results.text):
        scores.sort(key=lambda score: order[score.record])
    return results


def with_unique_ids(records: Sequence[Record]) -> list[Record]:
    """The records with repeated ids numbered: published files use one id for several questions about an image."""
    seen: Counter[str] = Counter()
    out = []
    for record in records:
        seen[record.id] += 1
        out.append(record if seen[record.id] == 1 else replace(record, id=f"{record.id}~{seen[record.id]}"))
    return out


def _ahead(read: Callable[[T], S], items: Sequence[T]) -> Iterator[S]:
    """What `read` makes of every item, in order; the next one is read by a thread meanwhile, so that an accelerator need not wait."""
    with ThreadPoolExecutor(1) as pool:
        coming: Future[S] | None = None
        for item in items:
            ready, coming = coming, pool.submit(read, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def _score(loaded: Loaded, prediction: Prediction, results: Results) -> None:
    record = loaded.records[0]
    grounding = record.meta.task == "grounding"
    present = None if not record.targets else record.targets[0].mask is not None
    reference = record.turns[-1].text
    results.answers.append(
        Answered(
            record=record.id,
            task=record.meta.task,
            question=record.turns[0].text,
            reference=reference,
            text=prediction.text,
            complete=prediction.complete,
            lm_logit=prediction.lm_logit,
            presence_logit=prediction.presence_logit,
            presence=prediction.presence,
            present=present,
        )
    )
    if grounding:
        results.grounding += [score_case(case, protocol) for case in _cases(loaded, prediction) for protocol in PROTOCOLS]
        return
    kind = "closed" if record.meta.task in CLOSED_TASKS else "open"
    m = record.meta
    results.text.append(
        text_score(
            TextCase(
                id=record.id, record=record.id, source=m.source, patient=m.patient, modality=m.modality, kind=kind, reference=reference,
                prediction=prediction.text.replace("<SEG>", " "),
            )
        )
    )  # fmt: skip


def _cases(loaded: Loaded, prediction: Prediction) -> Iterator[GroundingCase]:
    record, m = loaded.records[0], loaded.records[0].meta
    said = match_masks([t.name for t in record.targets], prediction.masks)
    for index, (target, mask) in enumerate(zip(record.targets, loaded.target_masks[0], strict=True)):
        found = said[index]
        yield GroundingCase(
            id=f"{record.id}#{index}",
            record=record.id,
            source=m.source,
            patient=m.patient,
            modality=m.modality,
            name=target.name,
            index=index,
            target=mask,
            mask_probability=None if found is None else found.probability,
            presence=prediction.presence_of(index, len(record.targets)),
            quality=None if found is None else min(max(found.quality, 0.0), 1.0),
            fallback_probability=prediction.fallback,
            spacing=loaded.spacings[target.image_index],
        )


def match_masks(names: Sequence[str], masks: Sequence[MaskProbability]) -> list[MaskProbability | None]:
    """Which mask of an answer belongs to which asked name: the only one to the only name; else by name, the rest in order."""
    if len(names) == 1:
        return [masks[0] if masks else None]
    left = list(masks)
    found: list[MaskProbability | None] = [next((m for m in left if m.name == name), None) for name in names]
    left = [m for m in left if all(m is not f for f in found) and m.name not in names]
    return [f if f is not None else (left.pop(0) if left and left[0].name == "target" else None) for f in found]


class _Store:
    """predictions.jsonl, grounding.jsonl and text.jsonl of a run; run.json says of which one."""

    FILES = (("predictions.jsonl", Answered), ("grounding.jsonl", GroundingScore), ("text.jsonl", TextScore))

    def __init__(self, out: Path, key: dict[str, str]) -> None:
        self.out, run = out, out / "run.json"
        out.mkdir(parents=True, exist_ok=True)
        if run.exists() and json.loads(run.read_text()) != key:
            raise InputError(where=out, expected="results of this very run, or an empty folder", found="results of another run",
                             remedy="choose another --out or remove it")  # fmt: skip
        run.write_text(json.dumps(key, indent=1) + "\n")
        answers, grounding, text = (self._read(name, cls) for name, cls in self.FILES)
        known = {a.record for a in answers}  # the answer is written last: scores without it belong to a batch that was cut off
        self.results = Results(answers, [g for g in grounding if g.record in known], [t for t in text if t.record in known])
        if known:
            log.info("%s: going on after %d records", out, len(known))
        for (name, _), lines in zip(self.FILES, (self.results.answers, self.results.grounding, self.results.text), strict=True):
            (out / name).write_text("".join(to_line(line) + "\n" for line in lines), encoding="utf-8")

    def _read(self, name: str, cls: type) -> list:
        path = self.out / name
        if not path.exists():
            return []
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0]  # a line that was cut off ends without a line break
        return [from_line(cls, line, where=f"{path}:{n}") for n, line in enumerate(whole.split("\n"), 1) if line]

    def append(self, scored: Results) -> None:
        """Add a batch; the answers go last."""
        for (name, _), lines in zip(reversed(self.FILES), (scored.text, scored.grounding, scored.answers), strict=True):
            with (self.out / name).open("a", encoding="utf-8") as file:
                file.write("".join(to_line(line) + "\n" for line in lines))


def _run_key(predictor: Predictor, records: Sequence[Record], options: RunOptions) -> dict[str, str]:
    ids = hashlib.sha256("\n".join(r.id for r in records).encode()).hexdigest()
    calibration = "" if predictor.calibration is None else hashlib.sha256(repr(predictor.calibration).encode()).hexdigest()
    return {
        "weights_sha256": predictor.checkpoint.lineage.weights_sha256,
        "calibration_sha256": calibration,
        "expert": predictor.expert or "",
        "dtype": str(predictor.dtype).removeprefix("torch."),
        "records_sha256": ids,
        "with_image": str(options.with_image),
        "protocols": json.dumps([asdict(p) for p in PROTOCOLS], sort_keys=True),
    }
