"""Builds the model of a stage from its parents, strictly: every tensor has one named origin, nothing is left over."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from medplib.config import from_dict
from medplib.errors import InputError
from medplib.lineage import TOKENIZER, Checkpoint, Lineage, load_checkpoint
from medplib.models.build import ModelConfig, build_model
from medplib.models.language import TOKEN_TABLES
from medplib.models.load import check_keys, load_model
from medplib.models.medplib import MedPLIB
from medplib.models.vision import VisionConfig
from medplib.tokenizer import load_tokenizer
from medplib.tokens import SEG
from medplib.training.parts import covers, part_of
from medplib.training.stage import Parent, StageConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MLP = re.compile(r"^(language\.model\.model\.layers\.(\d+)\.mlp\.)(.+)$")


@dataclass(frozen=True)
class Assembled:
    """A model ready for its stage. `parents`: role -> lineage."""

    model: MedPLIB
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    parents: dict[str, Lineage]


def assemble(stage: StageConfig) -> Assembled:
    """Build and load the model of `stage`.

    Raises:
        InputError: wrong parent stage, changed file, another tokenizer, missing, left-over or mis-shaped tensors.
    """
    roles = parent_roles(stage)
    parents = {role: load_checkpoint(p.path, stage=p.stage, role=f"stage '{stage.name}' {role}") for role, p in roles.items()}
    _same_tokenizer(parents)
    base = parents.get("base")
    tokenizer = load_tokenizer(stage.tokenizer if base is None else base.folder / TOKENIZER)
    config = _with_name_ids(resolve_config(stage, parents), tokenizer)
    torch.manual_seed(stage.seed)
    model = build_model(config, vocab_size=len(tokenizer))
    state = _collect(stage, config, base, parents, seg_row=tokenizer.convert_tokens_to_ids(SEG))
    _load(model, state, stage, config)
    return Assembled(model, tokenizer, _resolved(config, model), {role: parent.lineage for role, parent in parents.items()})


def parent_roles(stage: StageConfig) -> dict[str, Parent]:
    """Role (base, part:NAME, expert:NAME, token_rows) -> the parent that has it."""
    init = stage.init
    roles = {} if init.base is None else {"base": init.base}
    roles |= {f"part:{name}": parent for name, parent in init.parts.items()}
    roles |= {f"expert:{name}": parent for name, parent in init.experts.items()}
    return roles if init.token_rows is None else {**roles, "token_rows": init.token_rows}


def _same_tokenizer(parents: dict[str, Checkpoint]) -> None:
    found = {role: parent.lineage.tokenizer_sha256 for role, parent in parents.items() if parent.lineage.tokenizer_sha256}
    if len(set(found.values())) > 1:
        hashes = ", ".join(f"{role} {digest[:8]}" for role, digest in found.items())
        raise InputError(where="stage.init", expected="parents with one tokenizer", found=hashes,
                         remedy="train all stages from the same tokenizer folder")  # fmt: skip


def resolve_config(stage: StageConfig, parents: dict[str, Checkpoint]) -> ModelConfig:
    """Sizes: those of the base, with the sections that the other parents and the stage bring.

    Args:
        stage: the stage.
        parents: role -> checkpoint; only their configurations are read.
    """
    base = parents.get("base")
    config = stage.model if base is None else from_dict(ModelConfig, base.config["model"], where=f"{base.folder}/config.json: model")
    for role, parent in parents.items():
        if not role.startswith("part:"):
            continue
        other = from_dict(ModelConfig, parent.config["model"], where=f"{parent.folder}/config.json: model")
        if role == "part:grounder":
            config = replace(config, grounder=other.grounder, seg_projector_norm=other.seg_projector_norm)
        elif role == "part:vision":
            config = replace(config, vision=_vision(config.vision, other, stage.init.parts["vision"]))
        elif role == "part:names":
            config = replace(config, name_prompts=other.name_prompts)
        elif role == "part:contrast":
            config = replace(config, contrast_width=other.contrast_width)
    if stage.moe is None:
        return config
    if config.language is None:
        raise InputError(where=f"stage '{stage.name}': moe", expected="a base with a language model", found="a grounder alone")
    return replace(config, language=replace(config.language, moe=stage.moe))


def _vision(config: VisionConfig, other: ModelConfig, parent: Parent) -> VisionConfig:
    """Sizes of a vision encoder that comes from another checkpoint: its vision encoder, or a copy of its grounder's."""
    if parent.part is None:
        return other.vision
    return replace(config, kind="grounder", grounder=other.grounder)


def _with_name_ids(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> ModelConfig:
    """The configuration with the tokens of `vision.names` as they stand inside a sentence."""
    ids = tuple(tuple(tokenizer(f" {name}", add_special_tokens=False)["input_ids"]) for name in config.vision.names)
    return replace(config, vision=replace(config.vision, name_ids=ids))


def _resolved(config: ModelConfig, model: MedPLIB) -> ModelConfig:
    """The configuration with what pretrained parts brought written out, so that a checkpoint needs no outside folder."""
    if model.language is None:
        return config
    language = replace(config.language, vocab_size=model.language.vocab_size)
    if config.language.pretrained is not None:
        language = replace(language, pretrained=None, hf_config=model.language.model.config.to_diff_dict())
    vision = replace(config.vision, pretrained=False, hf_config=model.vision.hf_config())
    return replace(config, language=language, vision=vision)


def _collect(
    stage: StageConfig, config: ModelConfig, base: Checkpoint | None, parents: dict[str, Checkpoint], *, seg_row: int
) -> dict[str, torch.Tensor]:
    """Every tensor with its origin resolved."""
    taken = tuple(stage.init.parts)
    state: dict[str, torch.Tensor] = {}
    if base is not None:
        fresh = stage.init.fresh
        state = base.tensors(
            lambda name: (
                not any(covers(p, name) for p in taken)
                and not _gets_experts(name, stage)
                and not any(covers(part, part_of(name)) for part in fresh)
            )
        )
    for role, parent in parents.items():
        kind, _, name = role.partition(":")
        if kind == "part":
            state |= _part(parent, name, stage.init.parts[name].part or name, name_ids=config.vision.name_ids)
        elif kind == "expert":
            for key, tensor in parent.tensors(lambda key: _gets_experts(key, stage)).items():
                prefix, _, rest = _MLP.match(key).groups()
                if rest.startswith(("experts.", "router.")):
                    raise InputError(where=f"{role} {parent.folder}", expected="a dense checkpoint", found="one that already has experts")
                state[f"{prefix}experts.{name}.{rest}"] = tensor
        elif kind == "token_rows":
            for table, tensor in parent.tensors(lambda key: key in TOKEN_TABLES).items():
                state[table] = state[table].clone()
                state[table][seg_row] = tensor[seg_row]
    return state


def _gets_experts(name: str, stage: StageConfig) -> bool:
    """Whether a tensor belongs to an MLP that the stage replaces by experts."""
    found = _MLP.match(name)
    return bool(found) and stage.moe is not None and (not stage.moe.layers or int(found[2]) in stage.moe.layers)


def _part(parent: Checkpoint, name: str, there: str, *, name_ids: tuple[tuple[int, ...], ...]) -> dict[str, torch.Tensor]:
    """The tensors of a part under their names here. A vision encoder of kind "grounder" takes what it has of a grounder, and what that
    one draws for the names of `name_ids`.
    """
    found = parent.tensors(lambda key: covers(there, key))
    if (name, there) == ("vision", "grounder"):
        kept = ("grounder.image_encoder.", "grounder.upscaling.")
        found = {key.replace("grounder.", "vision.backbone.", 1): tensor for key, tensor in found.items() if key.startswith(kept)}
        if name_ids:
            found["vision.backbone.evidence.weight"] = _evidence(parent, name_ids)
    if not found:
        raise InputError(where=f"part:{name} {parent.folder}", expected=f"tensors of {there}", found="none")
    return found


@torch.no_grad()
def _evidence(parent: Checkpoint, name_ids: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    """Per name, the weights (K, c) with which the parent's grounder draws it directly."""
    model, _, _ = load_model(parent)
    if model.names is None:
        raise InputError(where=f"model.vision.names with {parent.folder}", expected="a grounder that names prompt", found="one without")
    padded = pad_sequence([torch.tensor(ids) for ids in name_ids], batch_first=True, padding_value=-1)
    return model.grounder.direct_weights(model.names(padded))


def _load(model: MedPLIB, state: dict[str, torch.Tensor], stage: StageConfig, config: ModelConfig) -> None:
    language = config.language.pretrained if config.language is not None else None
    pretrained = [p for p, is_set in (("language", language), ("vision", config.vision.pretrained or None)) if is_set]
    origins = (*stage.init.fresh, *pretrained)
    check_keys(model, state, allowed=lambda name: any(covers(g, part_of(name)) for g in origins), where=f"stage '{stage.name}'")
    model.load_state_dict(state, strict=False)
