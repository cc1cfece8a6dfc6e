"""Runs a predictor over records, scores every answer once and keeps the scores as lines, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from medplib.data.dataset import FileCache, load_records
from medplib.data.encode import Loaded
from medplib.evaluation.protocols import STRICT, UPSTREAM, GroundingProtocol
from medplib.evaluation.results import Answered, Results, ResultStore
from medplib.evaluation.segmentation import GroundingCase, score_case
from medplib.evaluation.text import TextCase, text_score
from medplib.inference.predictor import MaskProbability, Prediction, Predictor
from medplib.ranks import gathered, rank, world_size
from medplib.types import Batch, Record

T, S = TypeVar("T"), TypeVar("S")
PROTOCOLS: tuple[GroundingProtocol, ...] = (UPSTREAM, STRICT)
CLOSED_TASKS = ("vqa_closed", "region")
"""Tasks whose answer is one of few; region questions ask for a name."""


@dataclass(frozen=True)
class RunOptions:
    """How records are asked.

    Args:
        batch_size: conversations per forward.
        with_image: False shows a grey image (control for language priors).
        protocols: grounding answers are scored by each of them.
        first_token_only: stop behind the first token of every answer. Its scores are what a presence rule is fitted on; there is
            nothing else to score.
        progress: words of the progress bar; empty for none.
    """

    batch_size: int = 16
    with_image: bool = True
    protocols: tuple[GroundingProtocol, ...] = PROTOCOLS
    first_token_only: bool = False
    progress: str = "evaluate"


Viewer = Callable[[int, Loaded, Prediction], None]
"""Is shown every answer: which one of its set it is, the question, the answer."""


def evaluate_records(
    predictor: Predictor, records: Sequence[Record], options: RunOptions, *, out: Path | None = None, viewer: Viewer | None = None
) -> Results:
    """Answer and score all records; ranks share the work, batch by batch, and each has all results in the end.

    Args:
        predictor: the model.
        records: each asked by its first question; the last answer is the reference.
        options: see RunOptions.
        out: folder for predictions.jsonl, grounding.jsonl and text.jsonl; what it already holds of the same run is not asked again.
        viewer: is shown every image and prediction of this rank (galleries).
    """
    cache, records = FileCache(256), with_unique_ids(records)
    protocols = () if options.first_token_only else options.protocols
    store = None if out is None else ResultStore(out, _run_key(predictor, records, options, protocols))
    results = Results() if store is None else store.known
    new = Results()
    done = {answer.record for answer in results.answers}
    # Questions about one image share its features, if they meet in a batch.
    todo = sorted((r for r in records if r.id not in done), key=lambda r: (r.images, len(r.turns[0].text)))
    encoder = predictor.encoder(with_image=options.with_image)
    collate = predictor.collator(encoder)

    def read(chunk: Sequence[Record]) -> tuple[list[Loaded], Batch]:
        loaded = [load_records((record,), cache) for record in chunk]
        return loaded, collate([encoder.encode(item) for item in loaded])

    starts = range(options.batch_size * rank(), len(todo), options.batch_size * world_size())
    batches = _ahead(read, [todo[start : start + options.batch_size] for start in starts])
    silent = not options.progress or rank() > 0
    for start, (loaded, batch) in zip(
        starts, tqdm(batches, total=len(starts), desc=options.progress, disable=silent, leave=False), strict=True
    ):
        grounding = any(item.records[0].meta.task == "grounding" for item in loaded)
        predictions = predictor.predict(
            batch,
            with_fallback=grounding and any(protocol.use_fallback for protocol in protocols),
            with_masks=not options.first_token_only and (grounding or viewer is not None),
            scored=grounding,
            max_new_tokens=1 if options.first_token_only else None,
        )
        scored = Results()
        for place, (item, prediction) in enumerate(zip(loaded, predictions, strict=True), start):
            _score(item, prediction, options, scored)
            if viewer is not None:
                viewer(place, item, prediction)
        new.add(scored)
        if store is not None:
            store.append(scored)
    for found in gathered([new]):
        results.add(found)
    order = {record.id: i for i, record in enumerate(records)}
    for scores in (results.answers, results.grounding, results.text):
        scores.sort(key=lambda score: order[score.record])
    if store is not None:
        store.finish(results)
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


def _score(loaded: Loaded, prediction: Prediction, options: RunOptions, results: Results) -> None:
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
    if options.first_token_only:
        return
    if grounding:
        results.grounding += [score_case(case, protocol) for case in _cases(loaded, prediction) for protocol in options.protocols]
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


def _run_key(
    predictor: Predictor, records: Sequence[Record], options: RunOptions, protocols: Sequence[GroundingProtocol]
) -> dict[str, str]:
    ids = hashlib.sha256("\n".join(r.id for r in records).encode()).hexdigest()
    calibration = "" if predictor.calibration is None else hashlib.sha256(repr(predictor.calibration).encode()).hexdigest()
    return {
        "weights_sha256": predictor.checkpoint.lineage.weights_sha256,
        "calibration_sha256": calibration,
        "expert": predictor.expert or "",
        "dtype": str(predictor.dtype).removeprefix("torch."),
        "records_sha256": ids,
        "with_image": str(options.with_image),
        "protocols": json.dumps([asdict(p) for p in protocols], sort_keys=True),
    }
