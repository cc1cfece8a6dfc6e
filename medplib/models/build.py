"""Sizes in one place: ModelConfig -> MedPLIB, and the feeding specification that goes with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from medplib.errors import InputError
from medplib.models.contrast import ContrastHead
from medplib.models.evidence import GroundedWords
from medplib.models.grounding import GrounderConfig, NamePromptEncoder, build_grounder
from medplib.models.language import LanguageConfig, LanguageModel
from medplib.models.medplib import MedPLIB, SegProjector
from medplib.models.projector import Projector, ProjectorConfig
from medplib.models.region import RegionEncoder
from medplib.models.vision import VisionConfig, VisionEncoder
from medplib.types import InputSpec, Template


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build a model; saved as JSON with every checkpoint.

    Args:
        vision, projector, language: the visual-language side; `language` None leaves all of it out (training a grounder alone).
        grounder: the pixel-grounding side; None builds a model that only speaks.
        seg_projector_norm: LayerNorm behind the SegProjector (off in the published model).
        name_prompts: build the prompt encoder for target names.
        contrast_width: width of the image-text heads; 0 builds none.
        legacy: do as the published code does where this project departs from it (docs/differences.md): mask un-padding, targets of mask
            losses, region sampling.
        template: words around the turns.
        max_length: tokens of a sample, image tokens included.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    language: LanguageConfig | None = field(default_factory=LanguageConfig)
    grounder: GrounderConfig | None = None
    seg_projector_norm: bool = False
    name_prompts: bool = False
    contrast_width: int = 0
    legacy: bool = False
    template: Template = field(default_factory=Template)
    max_length: int = 1024

    @property
    def image_tokens(self) -> int:
        """P, language-model tokens per image."""
        return (self.vision.grid // self.projector.pool) ** 2 + len(self.vision.names)


def build_model(config: ModelConfig, *, vocab_size: int) -> MedPLIB:
    """Build with random weights (or the pretrained ones that the parts name).

    Args:
        config: sizes.
        vocab_size: rows the language model needs at least (length of the tokenizer).

    Raises:
        InputError: parts that do not fit together.
    """
    if config.vision.grid % config.projector.pool:
        raise InputError(
            where="model.projector.pool",
            expected=f"a divisor of model.vision.grid = {config.vision.grid}",
            found=str(config.projector.pool),
        )
    if config.name_prompts and config.grounder is None:
        raise InputError(where="model.name_prompts", expected="a grounder to prompt", found="model.grounder: null")
    grounder = None if config.grounder is None else build_grounder(config.grounder)
    names = NamePromptEncoder(vocab_size=vocab_size, width=grounder.prompt_width) if config.name_prompts else None
    if config.language is None:
        if grounder is None:
            raise InputError(where="model", expected="a language model, a grounder or both", found="neither")
        return MedPLIB(vision=None, projector=None, region=None, language=None, seg_projector=None, grounder=grounder, names=names,
                       words=None, contrast=None)  # fmt: skip
    language = LanguageModel(replace(config.language, vocab_size=max(config.language.vocab_size, vocab_size)))
    vision = VisionEncoder(config.vision)
    widths = {"vision_width": vision.width, "language_width": language.width}
    return MedPLIB(
        vision=vision,
        projector=Projector(config=config.projector, **widths, maps=len(config.vision.names)),
        region=RegionEncoder(**widths, legacy=config.legacy),
        language=language,
        seg_projector=None
        if grounder is None
        else SegProjector(language_width=language.width, prompt_width=grounder.prompt_width, norm=config.seg_projector_norm),
        grounder=grounder,
        names=names,
        words=GroundedWords(name_ids=config.vision.name_ids, vision_width=vision.width, width=language.width)
        if config.vision.names
        else None,
        contrast=ContrastHead(**widths, width=config.contrast_width) if config.contrast_width else None,
    )


def input_spec(config: ModelConfig, *, with_sam: bool) -> InputSpec:
    """How a model wants to be fed. Without a grounder but `with_sam`, masks come at the size of the vision image."""
    sam_size = config.grounder.image_size if config.grounder is not None else config.vision.image_size
    return InputSpec(
        vision_size=config.vision.image_size if config.language is not None else 0,
        image_tokens=config.image_tokens,
        region_grid=config.vision.grid,
        sam_size=sam_size if with_sam else None,
        max_length=config.max_length,
        template=config.template,
        legacy=config.legacy,
    )
