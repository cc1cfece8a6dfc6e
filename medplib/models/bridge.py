"""Weight names of published checkpoints and ours, both ways; no weights, no files.

A published folder (MedPLIB stage II or III, dense; stage IV, mixture of experts) and a LLaVA-1.5 folder name the same tensors in the same
way. Names that no published code has keep ours behind a prefix, so that a model with more parts survives the way there and back.
Letters: `{n}` a number, `{e}` an expert.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from medplib.errors import InputError
from medplib.models.sam import official_sam_key, sam_med2d_keys

GROUNDER = "model.visual_model."
EXTENSION = "medplib."
"""Before the names of parts that the published code does not have."""

_PUBLISHED_GROUNDER = ("grounder.image_encoder.vit.", "grounder.prompt_encoder.", "grounder.mask_decoder.")
_PREFIXES = (  # published, ours; the first that fits counts
    ("model.vision_tower.vision_tower.vision_model.", "vision.backbone.model."),
    ("model.mm_projector.", "projector.layers."),
    ("model.region_fea_adapter.", "region.adapter."),
    ("model.text_hidden_fcs.0.", "seg_projector.layers."),
    ("model.embed_tokens.", "language.model.model.embed_tokens."),
    ("model.layers.", "language.model.model.layers."),
    ("model.norm.", "language.model.model.norm."),
    ("lm_head.", "language.model.lm_head."),
)
_OTHER_LAYOUTS = (  # names that transformers gives the parts of LLaVA, older and newer
    (re.compile(r"^(model\.)?language_model\.(model\.)?(?=embed_tokens|layers|norm)"), "model."),
    (re.compile(r"^(language_model\.)?lm_head\."), "lm_head."),
    (re.compile(r"^(model\.)?vision_tower\.(vision_model\.)?(?=embeddings|encoder|pre_layrnorm|post_layernorm)"),
     "model.vision_tower.vision_tower.vision_model."),
    (re.compile(r"^(model\.)?multi_modal_projector\.linear_1\."), "model.mm_projector.0."),
    (re.compile(r"^(model\.)?multi_modal_projector\.linear_2\."), "model.mm_projector.2."),
)  # fmt: skip
_ROUTER = re.compile(r"^(.*\.mlp\.)deepspeed_moe\.gate\.wg\.(.+)$")
_EXPERT = re.compile(r"^(.*\.mlp\.)deepspeed_moe\.experts\.deepspeed_experts\.(\d+)\.(.+)$")
_OUR_ROUTER = re.compile(r"^(language\..*\.mlp\.)router\.(.+)$")
_OUR_EXPERT = re.compile(r"^(language\..*\.mlp\.)experts\.([^.]+)\.(.+)$")
BUFFERS = re.compile(r"^model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$|\.embeddings\.position_ids$")
"""Tensors of published folders that a model computes itself."""


def published_layout(name: str) -> str:
    """A name of LLaVA as transformers stores it -> as published; other names stay."""
    for pattern, published in _OTHER_LAYOUTS:
        if pattern.match(name):
            return pattern.sub(published, name, count=1)
    return name


def our_names(official: Iterable[str], *, experts: Sequence[str]) -> dict[str, str]:
    """Published name -> our name, in the given order. Buffers (`BUFFERS`) are left out.

    Args:
        official: all names of one checkpoint.
        experts: our names of its experts 0, 1, ...; empty for a dense one.

    Raises:
        InputError: names that belong to no part, or more experts than names for them; all of them are counted, the first is shown.
    """
    names = [name for name in official if not BUFFERS.search(name)]
    inner = [name.removeprefix(GROUNDER) for name in names if name.startswith(GROUNDER)]
    sam = sam_med2d_keys(inner)
    mapped, unknown = {}, []
    for name in names:
        if name.startswith(GROUNDER):
            mapped[name] = "grounder." + sam[name.removeprefix(GROUNDER)]
        elif (ours := _our_name(name, experts)) is not None:
            mapped[name] = ours
        else:
            unknown.append(name)
    if unknown:
        raise InputError(
            where="published checkpoint",
            expected=f"tensors of the vision encoder, projector, region encoder, language model, experts ({len(experts)}) and grounder",
            found=f"{len(unknown)} others: {', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}",
            remedy="leave them out by name prefix (--options.drop)",
        )
    return mapped


def one_to_one(names: dict[str, str], *, where: str | Path) -> dict[str, str]:
    """The same table, or InputError when two tensors of a checkpoint are to become one."""
    first: dict[str, str] = {}
    for name, ours in names.items():
        if ours in first:
            raise InputError(where=where, expected=f"one tensor that becomes {ours}", found=f"{first[ours]} and {name}",
                             remedy="leave one of them out")  # fmt: skip
        first[ours] = name
    return names


def _our_name(name: str, experts: Sequence[str]) -> str | None:
    if name.startswith(EXTENSION):
        return name.removeprefix(EXTENSION)
    ours = next((new + name.removeprefix(old) for old, new in _PREFIXES if name.startswith(old)), None)
    if ours is None:
        return None
    if found := _ROUTER.match(ours):
        return f"{found[1]}router.{found[2]}"
    if found := _EXPERT.match(ours):
        return f"{found[1]}experts.{experts[int(found[2])]}.{found[3]}" if int(found[2]) < len(experts) else None
    return ours


def published_name(ours: str, *, experts: Sequence[str]) -> str:
    """The inverse of `our_names` for one tensor. `experts` are our names of experts 0, 1, ..."""
    if ours.startswith(_PUBLISHED_GROUNDER):
        return GROUNDER + official_sam_key(ours.removeprefix("grounder."))
    if found := _OUR_ROUTER.match(ours):
        ours = f"{found[1]}deepspeed_moe.gate.wg.{found[2]}"
    elif found := _OUR_EXPERT.match(ours):
        ours = f"{found[1]}deepspeed_moe.experts.deepspeed_experts.{experts.index(found[2])}.{found[3]}"
    for old, new in _PREFIXES:
        if ours.startswith(new):
            return old + ours.removeprefix(new)
    return EXTENSION + ours
