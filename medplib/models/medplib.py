"""The model: vision encoder, projector, region encoder, language model and pixel grounder, composed and nothing more.

Paper: MedPLIB, arXiv 2412.09278, section 3. The state that predicts `<SEG>` becomes the prompt of a SAM mask decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from medplib.models.contrast import ContrastHead
from medplib.models.evidence import GroundedWords
from medplib.models.grounding import NamePromptEncoder, PixelGrounder
from medplib.models.language import LanguageModel, prefix_mask, states_before
from medplib.models.projector import Projector
from medplib.models.region import RegionEncoder
from medplib.models.vision import VisionEncoder
from medplib.tokens import IGNORE_LABEL, IMAGE_PLACEHOLDER, REGION_PLACEHOLDER
from medplib.types import Batch, GroundingOutput, ModelOutput

T = TypeVar("T")


class SegProjector(nn.Module):
    """Language state (N, D) -> prompt of the mask decoder (N, C): Linear, ReLU, Linear, as published; `norm` adds a LayerNorm."""

    def __init__(self, *, language_width: int, prompt_width: int, norm: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(language_width, language_width), nn.ReLU(inplace=True), nn.Linear(language_width, prompt_width)
        )
        self.norm = nn.LayerNorm(prompt_width) if norm else nn.Identity()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.norm(self.layers(states))


class MedPLIB(nn.Module):
    """Everything a stage may train; parts that a configuration leaves out are None.

    Args:
        vision, projector, region, language: the visual-language side, or all None (a grounder alone).
        seg_projector, grounder: the pixel-grounding side, or None.
        names: prompt encoder for target names (pretraining and distillation of the grounder), or None.
        words: evidence for the words that name something (language models from scratch), or None.
        contrast: image-text heads (pretraining of the vision encoder), or None.
    """

    def __init__(
        self,
        *,
        vision: VisionEncoder | None,
        projector: Projector | None,
        region: RegionEncoder | None,
        language: LanguageModel | None,
        seg_projector: SegProjector | None,
        grounder: PixelGrounder | None,
        names: NamePromptEncoder | None,
        words: GroundedWords | None,
        contrast: ContrastHead | None,
    ) -> None:
        super().__init__()
        self.vision, self.projector, self.region, self.language = vision, projector, region, language
        self.seg_projector, self.grounder, self.names = seg_projector, grounder, names
        self.words, self.contrast = words, contrast
        self._every_part = False

    @property
    def every_part(self) -> bool:
        """Whether parts run even where a batch has nothing for them, so that all ranks take part in every exchange: in training always."""
        return self.training or self._every_part

    def run_every_part(self) -> None:
        """From here on out of training, too: where ranks hold pieces of each other's weights, a part gathers them when it runs."""
        self._every_part = True
        if self.language is not None:
            self.language.routing.every_expert = True

    def embed(self, batch: Batch, features: torch.Tensor | None = None, shown: torch.Tensor | None = None) -> torch.Tensor:
        """Inputs of the language model (B, L, D): word embeddings with image and region features in their places.

        `features` (I, g, g, Dv) are those of the vision encoder, `shown` what words carry of them, when they are known already.
        """
        if features is None:
            features = self.vision(batch.vision_pixels, batch.letterboxes)
        embeds = self.embed_text(batch.input_ids, self.shown(batch, features) if shown is None else shown)
        embeds = _place(embeds, batch.input_ids == IMAGE_PLACEHOLDER, self.projector(features))
        if len(batch.region_masks) or self.every_part:
            tokens = self.region(features, batch.region_masks, batch.region_image)
            embeds = _place(embeds, batch.input_ids == REGION_PLACEHOLDER, tokens)
        return embeds

    def shown(self, batch: Batch, features: torch.Tensor) -> torch.Tensor | None:
        """What the words of each row carry of its images (B, K + 1, D), see `GroundedWords.shown`; None where words carry nothing."""
        if self.words is None:
            return None
        counts = torch.tensor([len(records[0].images) for records in batch.records], device=features.device)
        image_row = torch.arange(len(counts), device=features.device).repeat_interleave(counts)
        return self.words.shown(features, image_row, len(counts))

    def embed_text(self, ids: torch.Tensor, shown: torch.Tensor | None) -> torch.Tensor:
        """Word embeddings (B, L, D) of ids (B, L), with what they carry of the image (`shown`, see there)."""
        embeds = self.language.embed(ids)
        return embeds if self.words is None or shown is None else self.words(embeds, ids, shown)

    def hidden(self, batch: Batch, features: torch.Tensor | None = None) -> torch.Tensor:
        """Last hidden states (B, L, D); `features` as in `embed`."""
        return self.language.hidden(
            self.embed(batch, features),
            mask=prefix_mask(batch.attention_mask, batch.segments),
            positions=batch.positions,
            token_mask=batch.attention_mask,
            unmasked=batch.unmasked,
        )

    def forward(self, batch: Batch, *, with_masks: bool = True) -> ModelOutput:
        """Logits at supervised labels and, when the model can and `with_masks`, masks for every target of the batch.

        Absent targets get masks too: their presence logit is what is trained.
        """
        hidden = self.hidden(batch)
        target = batch.labels[:, 1:] != IGNORE_LABEL
        prompts, grounding = None, None
        if self.seg_projector is not None and (len(batch.names) or self.every_part):
            prompts = self.seg_projector(hidden[batch.target_row, batch.target_position])
            if with_masks:
                grounding = self.ground(batch, prompts)
        return ModelOutput(
            label_logits=self.language.logits(states_before(hidden, target)),
            label_ids=batch.labels[:, 1:][target],
            grounding=grounding,
            target_prompts=prompts,
            router=self.language.routing.stats(),
        )

    def within(self, call: Callable[[], T]) -> T:
        """What `call` returns. Strategies that gather weights around a forward gather them around this too (`training/sharded.py`)."""
        return call()

    def ground(self, batch: Batch, prompts: torch.Tensor) -> GroundingOutput:
        """Masks of N prompts (N, C) in the images that `batch.target_image` names."""
        features = self.grounder.encode(batch.sam_pixels, batch.letterboxes)
        return self.grounder.decode(features, batch.target_image, prompts)


def _place(embeds: torch.Tensor, where: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Overwrite the positions `where` (B, L) of `embeds` (B, L, D) with `tokens`, in order.

    Raises:
        ValueError: the numbers differ, so text and images of a batch do not belong together.
    """
    tokens = tokens.reshape(-1, embeds.shape[-1]).to(embeds.dtype)
    if int(where.sum()) != len(tokens):
        raise ValueError(f"{int(where.sum())} placeholders for {len(tokens)} feature tokens")
    return embeds.masked_scatter(where.unsqueeze(-1), tokens)
