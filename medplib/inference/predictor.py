"""A trained checkpoint as an object that answers: batches of samples in, words and mask probabilities out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from medplib.data.answers import REFUSAL_STARTS
from medplib.data.collate import Collator
from medplib.data.encode import Loaded, SampleEncoder
from medplib.data.sources.questions import listed_in_question, names_in_question
from medplib.inference.calibration import PresenceCalibration
from medplib.inference.encoding import BatchEncoder, ImageMemory
from medplib.inference.gate import PresenceGate
from medplib.inference.generate import Generated, generate
from medplib.inference.steps import steps_for
from medplib.lineage import load_checkpoint
from medplib.models.build import input_spec
from medplib.models.features import ImageFeatures
from medplib.models.geometry import published_unpad_resize, unpad_resize
from medplib.models.load import load_model
from medplib.models.moe import forced_expert
from medplib.tokens import SEG
from medplib.types import Batch, Record, Sample

CALIBRATION = "presence.json"


@dataclass(frozen=True)
class MaskProbability:
    """One `<SEG>` of an answer: name, probabilities (H, W) float32 at original size, presence probability or None, predicted IoU."""

    name: str
    probability: np.ndarray
    presence: float | None
    quality: float


@dataclass(frozen=True)
class Prediction:
    """What the model says to one conversation.

    Args:
        text: the answer, `<SEG>` included.
        masks: one per `<SEG>`.
        lm_logit: log-odds of `<SEG>` as first answer token.
        presence_logit: of the presence head for the first answer state; None without such a head.
        decisions: calibrated probability that the asked thing is there, at each choice between a mask and a refusal, in the order of the
            answer; empty when not calibrated.
        fallback: probabilities (H, W) decoded from the first answer state; None unless asked for and wanted, see `Predictor.predict`.
        complete: whether the answer ended by itself.
    """

    text: str
    masks: tuple[MaskProbability, ...]
    lm_logit: float
    presence_logit: float | None
    decisions: tuple[float, ...]
    fallback: np.ndarray | None
    complete: bool

    @property
    def presence(self) -> float | None:
        """The first decision; None without one."""
        return self.decisions[0] if self.decisions else None

    def presence_of(self, index: int, count: int) -> float | None:
        """The decision about the `index`-th of `count` asked things; None where the answer did not decide about each of them."""
        if count == 1:
            return self.presence
        return self.decisions[index] if len(self.decisions) == count else None


class Predictor:
    """Answers with one checkpoint.

    Args:
        checkpoint: folder written by `python -m medplib.fit`; hashes are checked.
        device: torch device.
        expert: name of an expert that every token is sent to, or None.
        calibrated: apply the checkpoint's presence calibration (presence.json), when it has one, to decide between mask and refusal.
        max_new_tokens: limit per answer.
        dtype: "float32", or "bfloat16" for half the memory (weights and computation).
        memory: where features of images are remembered, shared by predictors of one device and type; None = from batch to batch nothing is.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        device: str = "cpu",
        expert: str | None = None,
        calibrated: bool = True,
        max_new_tokens: int = 64,
        dtype: Literal["float32", "bfloat16"] = "float32",
        memory: ImageMemory | None = None,
    ) -> None:
        self.checkpoint = load_checkpoint(checkpoint)
        self.dtype = getattr(torch, dtype)
        self.model, self.tokenizer, self.config = load_model(self.checkpoint, dtype=self.dtype)
        self.model.to(device)
        self.device, self.expert, self.max_new_tokens = device, expert, max_new_tokens
        self.encode_images = BatchEncoder(self.model, self.config, memory)
        self.steps = steps_for(self.model.language, torch.device(device))
        self.seg_id, self.eos_id = self.tokenizer.convert_tokens_to_ids(SEG), self.tokenizer.eos_token_id
        starts = [self.tokenizer(words, add_special_tokens=False)["input_ids"][0] for words in REFUSAL_STARTS]
        self.refusal_ids = sorted(set(starts))
        self.comma_id = self.tokenizer(" liver,", add_special_tokens=False)["input_ids"][-1]
        self.spec = input_spec(self.config, with_sam=self.model.grounder is not None)
        path, weights = self.checkpoint.folder / CALIBRATION, self.checkpoint.lineage.weights_sha256
        self.calibration = PresenceCalibration.load(path, weights_sha256=weights) if calibrated and path.exists() else None

    def forcing(self, expert: str, *, calibrated: bool) -> Predictor:
        """The same model, weights shared, with every token sent to one expert; `calibrated` keeps the presence rule, too."""
        twin = copy(self)
        twin.expert = expert
        twin.calibration = self.calibration if calibrated else None
        return twin

    def encoder(self, *, with_image: bool = True) -> SampleEncoder:
        """Encodes conversations up to where the model has to answer."""
        return SampleEncoder(tokenizer=self.tokenizer, spec=self.spec, open_ended=True, with_image=with_image)

    def collator(self, encoder: SampleEncoder) -> Collator:
        """Collates for generation."""
        return Collator(encoder.text, pad_left=True)

    def answer(self, loaded: Sequence[Loaded]) -> list[Prediction]:
        """Answer conversations whose files are read (masks of their targets are not looked at); their images are not remembered."""
        encoder = self.encoder()
        return self.predict(self.collator(encoder)([encoder.encode(item) for item in loaded]), remember=False)

    def answer_samples(self, samples: Iterable[Sample]) -> list[Prediction]:
        """Answer encoded samples."""
        return self.predict(self.collator(self.encoder())(list(samples)))

    @torch.no_grad()
    def predict(
        self,
        batch: Batch,
        *,
        with_fallback: bool = False,
        with_masks: bool = True,
        scored: bool = True,
        remember: bool = True,
        max_new_tokens: int | None = None,
    ) -> list[Prediction]:
        """Answer a batch (left-padded, open-ended, one conversation per row).

        Args:
            batch: from `collator`.
            with_fallback: decode a mask from the first answer state, too, for every row that may leave a target without one: of its
                record's targets several, or its answer without `<SEG>`.
            with_masks: False leaves all masks out, fallback included (texts and scores are all that is wanted).
            scored: look at the presence head at the first token of every answer, not only where a mask or a refusal is due.
            remember: use the memory for images, where the predictor has one.
            max_new_tokens: limit per answer; None is the predictor's.
        """
        batch = batch.to(self.device)
        most = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        language = self.model.language
        forcing = forced_expert(language.routing, language.expert_names, self.expert) if self.expert else nullcontext()
        halves = nullcontext() if self.dtype == torch.float32 else torch.autocast(torch.device(self.device).type, dtype=self.dtype)
        with forcing, halves:
            images = self.encode_images(batch, remember=remember)
            features = images.features
            image_of_row = self._image_of_row(batch)
            gate = PresenceGate(self, features, image_of_row, scored=scored, asked=[self._asked(records[0]) for records in batch.records])
            limits = {"eos_id": self.eos_id, "seg_id": self.seg_id, "max_new_tokens": most}
            out = generate(self.model, batch, **limits, decide=gate.decide, features=images.shown, leader=images.leader, steps=self.steps)
            shown_to_decoder = features if with_masks else None
            return self._assemble(batch, out, gate, shown_to_decoder, image_of_row, with_fallback=with_fallback)

    def _asked(self, record: Record) -> list[tuple[int, ...]]:
        """Tokens of the names that the last question lists, each as it stands inside an answer."""
        question = next(turn.text for turn in reversed(record.turns) if turn.role == "human")
        return [tuple(self.tokenizer(f" {name}", add_special_tokens=False)["input_ids"]) for name in listed_in_question(question)]

    def _image_of_row(self, batch: Batch) -> torch.Tensor:
        """(B,) the image that each row's masks are drawn in: that of its first target, else its last image."""
        counts = torch.tensor([len(records[0].images) for records in batch.records])
        image = counts.cumsum(0) - 1
        for row, target_image in zip(reversed(batch.target_row.tolist()), reversed(batch.target_image.tolist()), strict=True):
            image[row] = target_image
        return image.to(self.device)

    def _assemble(
        self,
        batch: Batch,
        out: Generated,
        gate: PresenceGate,
        features: ImageFeatures | None,
        image_of_row: torch.Tensor,
        *,
        with_fallback: bool,
    ) -> list[Prediction]:
        texts = [self.tokenizer.decode(ids, skip_special_tokens=False).replace(SEG, f" {SEG}").strip() for ids in out.ids]
        masks: list[list[MaskProbability]] = [[] for _ in texts]
        fallback: list[np.ndarray | None] = [None] * len(texts)
        if features is not None:
            rows = out.seg_row
            maps, quality, presence_logit = self._masks(batch, features, out.seg_states, image_of_row[rows])
            for k, row in enumerate(rows.tolist()):
                name = _name(texts[row], len(masks[row]), batch.records[row][0].turns[0].text)
                presence = gate.said[row][len(masks[row])]
                if presence is None and presence_logit is not None:
                    presence = float(torch.sigmoid(presence_logit[k]))
                masks[row].append(MaskProbability(name, maps[k], presence, float(quality[k])))
            if with_fallback:
                left = [row for row, of_row in enumerate(masks) if not of_row or len(batch.records[row][0].targets) > 1]
                for row, found in zip(left, self._masks(batch, features, out.first_state[left], image_of_row[left])[0], strict=True):
                    fallback[row] = found
        return [
            Prediction(
                text=texts[row],
                masks=tuple(masks[row]),
                lm_logit=gate.lm_logit[row],
                presence_logit=gate.presence_logit[row],
                decisions=tuple(gate.decisions[row]),
                fallback=fallback[row],
                complete=out.complete[row],
            )
            for row in range(len(texts))
        ]

    def _masks(
        self, batch: Batch, features: ImageFeatures, states: torch.Tensor, images: torch.Tensor
    ) -> tuple[list[np.ndarray], torch.Tensor, torch.Tensor | None]:
        """Probabilities at original size for K states (K, D) in the images `images` (K,); quality (K,); presence logits (K,)."""
        out = self.model.grounder.decode(features, images, self.model.seg_projector(states))
        if self.config.legacy:
            maps = published_unpad_resize(out.low_res_logits, batch.letterboxes, images)
        else:
            maps = unpad_resize(out.mask_logits, batch.letterboxes, images)
        return [torch.sigmoid(m.float()).cpu().numpy() for m in maps], out.quality, out.presence_logit


def _name(text: str, index: int, question: str) -> str:
    """What the `index`-th `<SEG>` of an answer stands for: the words before it, else the name in the question."""
    pieces = text.split(SEG)
    words = re.split(r"[,.;:]", pieces[index].replace("<unk>", ""))[-1].strip()
    words = re.sub(r"^(and|the)\s+", "", words)
    if words:
        return words
    names = names_in_question(question, len(pieces) - 1)
    return names[index] if names else "target"
