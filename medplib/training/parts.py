"""Names for groups of parameters, so that a stage can say in words what trains and from where weights come."""

from __future__ import annotations

import re
from collections.abc import Iterable

from medplib.errors import InputError

_LAYER = r"^language\.model\.model\.layers\.\d+\."

PARTS: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "lora": r"\.lora_[AB]\.",
        "token_rows": r"^language\.rows\.",
        "router": _LAYER + r"mlp\.router\.",
        "language.embeddings": r"^language\.model\.model\.embed_tokens\.",
        "language.head": r"^language\.model\.lm_head\.",
        "language.norms": r"^language\.model\.model\.(norm\.|layers\.\d+\.(input|post_attention)_layernorm\.)",
        "language.attention": _LAYER + r"self_attn\.",
        "language.mlp": _LAYER + r"mlp\.",
        "grounder.image_encoder.adapter": r"^grounder\.image_encoder\..*\.mlp\.adapter\.",
        "grounder.image_encoder": r"^grounder\.image_encoder\.",
        "grounder.prompt_encoder": r"^grounder\.prompt_encoder\.",
        "grounder.mask_decoder.upscaling": r"^grounder\.upscaling\.",
        "grounder.mask_decoder.transformer": r"^grounder\.mask_decoder\.transformer\.",
        "grounder.mask_decoder.heads": r"^grounder\.(mask_decoder|residual)\.",
        "grounder.presence": r"^grounder\.presence\.",
        "vision.fuse": r"^vision\.backbone\.fuse\.",
        "vision.encoder": r"^vision\.",
        "projector": r"^projector\.",
        "region": r"^region\.",
        "seg_projector": r"^seg_projector\.",
        "names": r"^names\.",
        "words": r"^words\.",
        "contrast": r"^contrast\.",
    }.items()
}


def part_of(name: str) -> str:
    """The part a parameter belongs to (the first that matches: LoRA and router before the layer they sit in)."""
    for part, pattern in PARTS.items():
        if pattern.search(name):
            return part
    raise ValueError(f"parameter {name} belongs to no part")


def check_parts(parts: Iterable[str], *, where: str) -> None:
    """Every entry is a part or a group of parts ("language", "grounder"); else InputError."""
    for part in parts:
        if not any(covers(part, known) for known in PARTS):
            raise InputError(where=where, expected=f"parts: {', '.join(PARTS)}, or a group such as language", found=repr(part))


def covers(group: str, part: str) -> bool:
    """Whether `group` ("grounder") is or contains `part` ("grounder.mask_decoder")."""
    return part == group or part.startswith(group + ".")
