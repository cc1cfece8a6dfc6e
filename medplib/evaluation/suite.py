"""A whole evaluation as data: which files, which controls; one metrics.json and one report come out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medplib.data.dataset import spread
from medplib.data.prepare.mean_mask import mean_mask_dice
from medplib.data.sources import read_records
from medplib.errors import InputError
from medplib.evaluation.bootstrap import Bootstrap
from medplib.evaluation.controls import mosaic_control, shuffled_questions
from medplib.evaluation.experts import Rival, compare
from medplib.evaluation.figures import NamedFigure, Rule, named, write_metrics
from medplib.evaluation.grounding import summarise_grounding
from medplib.evaluation.presence import fit_presence
from medplib.evaluation.protocols import STRICT, GroundingProtocol
from medplib.evaluation.results import Results
from medplib.evaluation.runner import PROTOCOLS, RunOptions, Viewer, evaluate_records, with_unique_ids
from medplib.evaluation.text import summarise_vqa
from medplib.inference.calibration import PresenceCalibration
from medplib.inference.encoding import ImageMemory
from medplib.inference.predictor import CALIBRATION, Predictor
from medplib.lineage import Lineage
from medplib.ranks import rank
from medplib.types import Record


@dataclass(frozen=True)
class ControlsConfig:
    """Which controls to run.

    Args:
        mosaics: pairs of images side by side; 0 = none.
        shuffled: grounding questions asked about another structure of the image; 0 = none.
        mean_mask_train: training files whose mean masks are the position control; empty = none.
        no_image: closed questions asked with a grey image; 0 = none.
        experts: force each expert in turn on this many questions of each kind; 0 = none.
        grounding_parent, vl_parent: checkpoints of the experts' stages, asked the same questions for comparison.
    """

    mosaics: int = 0
    shuffled: int = 0
    mean_mask_train: tuple[str, ...] = ()
    no_image: int = 0
    experts: int = 0
    grounding_parent: str | None = None
    vl_parent: str | None = None


@dataclass(frozen=True)
class SuiteConfig:
    """What to evaluate.

    Args:
        grounding: name of a set (in_domain, zero_shot, ...) -> record files.
        vqa: files of closed and open questions.
        region: files of region questions.
        calibrate: validation files on which the presence rule is fitted before anything else; empty keeps what the checkpoint has.
        calibrate_limit: at most so many of those records; 0 = all.
        max_false_positives: share of absent targets that may be claimed on those files when the threshold is chosen; None chooses the
            highest balanced accuracy.
        controls: see ControlsConfig; they use the first grounding set and the vqa files.
        sources: only records of these sources are asked; empty = all.
        batch_size: conversations per forward.
        limit: at most so many records per set, evenly spaced; 0 = all.
        seed: of controls and intervals.
    """

    grounding: dict[str, tuple[str, ...]] = field(default_factory=dict)
    vqa: tuple[str, ...] = ()
    region: tuple[str, ...] = ()
    calibrate: tuple[str, ...] = ()
    calibrate_limit: int = 0
    max_false_positives: float | None = 0.03
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    sources: tuple[str, ...] = ()
    batch_size: int = 16
    limit: int = 0
    seed: int = 0


class Suite:
    """Runs a SuiteConfig on a checkpoint; `device` and `dtype` as in Predictor."""

    def __init__(
        self, checkpoint: Path, config: SuiteConfig, out: Path, *, device: str = "cpu", dtype: Literal["float32", "bfloat16"] = "float32"
    ) -> None:
        self.checkpoint, self.config, self.out = Path(checkpoint), config, Path(out)
        self.bootstrap = Bootstrap(seed=config.seed)
        self.figures: list[NamedFigure] = []
        self.answered: dict[str, Results] = {}
        """What the checkpoint as it is has answered already, by name of the set."""
        self._shown = 0
        self.device, self.dtype, self.memory = device, dtype, ImageMemory()
        self.predictor = self._load(self.checkpoint, calibrated=not config.calibrate)
        if config.calibrate:
            rule = self._calibration(self.predictor, "calibration")
            rule = replace(rule, weights_sha256=self.predictor.checkpoint.lineage.weights_sha256)
            if rank() == 0:  # fitted on what all ranks found: the same rule on each
                rule.save(self.checkpoint / CALIBRATION)
            self.predictor.calibration = rule

    def run(self, viewer: Viewer | None = None) -> list[NamedFigure]:
        """Everything; writes metrics.json and returns its figures."""
        for name, files in self.config.grounding.items():
            self._grounding(name, self._records(files), viewer)
        for name, files in (("vqa", self.config.vqa), ("region", self.config.region)):
            if files:
                self._vqa(name, self._records(files), viewer)
        self._controls()
        self.figures += stage_seconds(self.predictor.checkpoint.lineage)
        if rank() == 0:
            write_metrics(self.out / "metrics.json", self.figures)
        return self.figures

    def _load(self, folder: Path, *, calibrated: bool) -> Predictor:
        return Predictor(folder, calibrated=calibrated, device=self.device, dtype=self.dtype, memory=self.memory)

    def _records(self, files: tuple[str, ...], limit: int | None = None) -> list[Record]:
        records = with_unique_ids([record for file in files for record in read_records(Path(file))])
        if self.config.sources:
            records = [record for record in records if record.meta.source in self.config.sources]
        if not records:
            raise InputError(where="suite", expected=f"records of {', '.join(self.config.sources) or 'any source'}", found="none",
                             remedy=", ".join(files))  # fmt: skip
        return spread(records, self.config.limit if limit is None else limit)

    def _ask(
        self,
        predictor: Predictor,
        records: list[Record],
        name: str,
        *,
        protocols: tuple[GroundingProtocol, ...] = (STRICT,),
        with_image: bool = True,
        first_token_only: bool = False,
        viewer: Viewer | None = None,
    ) -> Results:
        size = self.config.batch_size
        options = RunOptions(size, with_image=with_image, protocols=protocols, first_token_only=first_token_only, progress=name)
        before, self._shown = self._shown, self._shown + len(records)
        counting = None if viewer is None else lambda place, loaded, prediction: viewer(before + place, loaded, prediction)
        return evaluate_records(predictor, records, options, out=self.out / name, viewer=counting)

    def _calibration(self, predictor: Predictor, name: str) -> PresenceCalibration:
        """The presence rule of a model, fitted on validation questions that ask for one thing."""
        records = [r for r in self._records(self.config.calibrate) if len(r.targets) == 1]
        records = spread(records, self.config.calibrate_limit)
        answers = self._ask(predictor, records, name, first_token_only=True).answers
        names = ["language model"] + (["presence head"] if answers[0].presence_logit is not None else [])
        logits = np.array([[a.lm_logit, a.presence_logit][: len(names)] for a in answers], np.float64)
        labels = np.array([bool(a.present) for a in answers])
        return fit_presence(logits, labels, names, max_fpr=self.config.max_false_positives)

    def _grounding(self, name: str, records: list[Record], viewer: Viewer | None) -> None:
        results = self.answered[f"grounding_{name}"] = self._ask(
            self.predictor, records, f"grounding_{name}", protocols=PROTOCOLS, viewer=viewer
        )
        for protocol in PROTOCOLS:
            prefix = f"grounding.{name}" + ("" if protocol is STRICT else f".{protocol.name}")
            summary = summarise_grounding(results.of(protocol), protocol, self.bootstrap)
            self.figures += summary.figures(prefix)
            if protocol is STRICT and summary.absent is not None and name == next(iter(self.config.grounding)):
                self.figures += named("grounding.absent", vars(summary.absent).items())

    def _vqa(self, name: str, records: list[Record], viewer: Viewer | None) -> None:
        results = self.answered[name] = self._ask(self.predictor, records, name, viewer=viewer)
        summary = summarise_vqa(results.text, self.bootstrap)
        headline = "region_accuracy" if name == "region" else "closed_accuracy"
        block = "vqa.region" if name == "region" else "vqa"
        self.figures += [*named("vqa", [(headline, summary.closed.get("exact"))]), *summary.figures(block)]

    def _controls(self) -> None:
        c, seed = self.config.controls, self.config.seed
        asked = self._records(next(iter(self.config.grounding.values())), limit=0) if self.config.grounding else []
        if c.mosaics:
            size = self.config.batch_size
            self.figures += mosaic_control(self.predictor, asked, self.bootstrap, count=c.mosaics, batch_size=size, seed=seed)
        if c.shuffled:
            shuffled = spread(shuffled_questions(asked, seed=seed), c.shuffled)
            results = self._ask(self.predictor, shuffled, "control_shuffled_text")
            summary = summarise_grounding(results.of(STRICT), STRICT, self.bootstrap)
            self.figures += named("controls", [("shuffled_text_mdice", summary.mdice)])
        if c.mean_mask_train:
            found = mean_mask_dice(self._records(c.mean_mask_train, limit=0), asked)
            rule = Rule("Dice of the training set's mean mask of the name", STRICT.name, "each mask once; threshold chosen on train")
            self.figures += named("controls", [("mean_mask_mdice", rule.plain(found.mean, found.n, "mean over masks"))])
        if c.no_image:
            closed = [r for r in self._records(self.config.vqa, limit=0) if r.meta.task == "vqa_closed"]
            text = self._ask(self.predictor, spread(closed, c.no_image), "control_no_image", with_image=False).text
            self.figures += named("controls", [("no_image_closed_accuracy", summarise_vqa(text, self.bootstrap).closed.get("exact"))])
        if c.experts:
            self._expert_controls(asked)

    def _again(self, predictor: Predictor, records: list[Record], name: str, *, of: str) -> Results:
        """Ask a part of the set `of`, unless the checkpoint as it is has answered it there."""
        known = self.answered[of].only(records) if predictor is self.predictor and of in self.answered else None
        return self._ask(predictor, records, name) if known is None else known

    def _expert_controls(self, asked: list[Record]) -> None:
        """The same questions to the router, to each expert alone, and to the stages the experts came from.

        Every model refuses by its own rule, fitted on the same questions, or the comparison would be one of thresholds.
        """
        c = self.config.controls
        closed = [r for r in self._records(self.config.vqa, limit=0) if r.meta.task == "vqa_closed"]
        grounding, closed = spread(asked, c.experts), spread(closed, c.experts)
        first = f"grounding_{next(iter(self.config.grounding), '')}"

        def rival(name: str, predictor: Predictor) -> Rival:
            draws = predictor.model.grounder is not None
            if draws and self.config.calibrate and predictor is not self.predictor:
                predictor.calibration = self._calibration(predictor, f"calibration_{name}")
            located = self._again(predictor, grounding, f"control_{name}_grounding", of=first) if draws else None
            return Rival(name, located, self._again(predictor, closed, f"control_{name}_closed", of="vqa"))

        router = rival("router", self.predictor)
        others = [
            rival(f"force_{name}", self.predictor.forcing(name, calibrated=not self.config.calibrate))
            for name in self.predictor.model.language.expert_names
        ]
        parents = {"grounding_parent": c.grounding_parent, "vl_parent": c.vl_parent}
        others += [rival(name, self._load(Path(folder), calibrated=False)) for name, folder in parents.items() if folder]
        self.figures += compare(router, others, self.bootstrap)


def stage_seconds(lineage: Lineage) -> list[NamedFigure]:
    """`seconds.<stage>`: wall time of every stage behind a checkpoint, from its lineage."""
    found: dict[str, float] = {}

    def visit(node: Lineage) -> None:
        found.setdefault(node.stage, node.seconds)
        for parent in node.parents.values():
            visit(parent)

    visit(lineage)
    rule = Rule("wall time in seconds of building and training the stage", "lineage", "as recorded when the stage was written")
    return [NamedFigure(f"seconds.{name}", rule.plain(seconds, 1, "one run")) for name, seconds in found.items()]
