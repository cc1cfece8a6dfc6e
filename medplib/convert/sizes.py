"""Sizes of a published model, from its config.json and the shapes of its tensors.

What shapes do not tell (heads of CLIP and of the mask decoder) is that of the published encoders, unless a configuration says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from medplib.errors import InputError
from medplib.models.config_grounding import DecoderConfig, GrounderConfig, VitConfig
from medplib.models.language import LanguageConfig
from medplib.models.moe import MoEConfig
from medplib.models.vision import VisionConfig

Shapes = Mapping[str, tuple[int, ...]]
CLIP_HEAD = 64
"""Width of one attention head in every published CLIP tower."""
_CLIP = "vision.backbone.model."
_LLAMA_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "rms_norm_eps", "rope_theta",
    "max_position_embeddings", "hidden_act", "tie_word_embeddings", "attention_bias", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


def clip_sizes(shapes: Shapes, clip: dict[str, Any] | None, *, name: str) -> VisionConfig:
    """A CLIP tower under our names -> VisionConfig.

    Args:
        shapes: our name -> shape.
        clip: vision configuration of transformers (JSON), or None to derive it.
        name: what to call it.

    Raises:
        InputError: no tower in the checkpoint, or a width from which the number of heads does not follow.
    """
    from transformers import CLIPVisionConfig

    if f"{_CLIP}embeddings.class_embedding" not in shapes:
        raise InputError(where="published checkpoint", expected="a CLIP tower (model.vision_tower.*)", found="none",
                         remedy="give the file or folder that holds it with --options.vision")  # fmt: skip
    (width,) = _shape(shapes, f"{_CLIP}embeddings.class_embedding", 1)
    patch = _shape(shapes, f"{_CLIP}embeddings.patch_embedding.weight", 4)[-1]
    grid = round((_shape(shapes, f"{_CLIP}embeddings.position_embedding.weight", 2)[0] - 1) ** 0.5)
    if clip is None:
        if width % CLIP_HEAD:
            raise InputError(where="published checkpoint", expected=f"a CLIP width that heads of {CLIP_HEAD} divide", found=str(width),
                             remedy="give the configuration of the tower with --options.clip")  # fmt: skip
        clip = {"num_attention_heads": width // CLIP_HEAD}
    known = {key: value for key, value in clip.items() if key in ("num_attention_heads", "hidden_act", "layer_norm_eps", "projection_dim")}
    derived = {
        "hidden_size": width,
        "num_hidden_layers": _count(shapes, _CLIP + r"encoder\.layers\.(\d+)\."),
        "intermediate_size": _shape(shapes, f"{_CLIP}encoder.layers.0.mlp.fc1.weight", 2)[0],
        "image_size": patch * grid,
        "patch_size": patch,
    }
    for key, value in derived.items():
        if clip.get(key, value) != value:
            raise InputError(
                where="published checkpoint", expected=f"a CLIP tower with {key} {clip[key]} (--options.clip)", found=str(value)
            )
    hf_config = _configured(CLIPVisionConfig, {**known, **derived}, where="configuration of the CLIP tower")
    return VisionConfig(kind="clip", name=name, image_size=patch * grid, grid=grid, hf_config=hf_config)


def sam_sizes(shapes: Shapes, *, decoder_heads: int = 8, prefix: str = "grounder.") -> GrounderConfig:
    """A SAM or SAM-Med2D model under our names -> GrounderConfig.

    Args:
        shapes: our name -> shape.
        decoder_heads: heads of the decoder's attention, 8 in every published one.
        prefix: of the grounder among the names.
    """
    vit, decoder = f"{prefix}image_encoder.vit.", f"{prefix}mask_decoder."
    if f"{vit}pos_embed" not in shapes:
        raise InputError(where="published checkpoint", expected="a SAM image encoder (image_encoder.*)", found="none")
    _, grid, _, width = _shape(shapes, f"{vit}pos_embed", 4)
    patch = _shape(shapes, f"{vit}patch_embed.proj.weight", 4)[-1]
    depth = _count(shapes, re.escape(vit) + r"blocks\.(\d+)\.")
    positions = [_shape(shapes, f"{vit}blocks.{block}.attn.rel_pos_h", 2) for block in range(depth)]
    windows = {rows for rows, _ in positions} - {2 * grid - 1}
    if len(windows) > 1:
        raise InputError(where="published checkpoint", expected="one window size in the image encoder", found=f"{sorted(windows)}")
    return GrounderConfig(
        kind="sam",
        image_size=grid * patch,
        embed_dim=_shape(shapes, f"{vit}neck.0.weight", 4)[0],
        vit=VitConfig(
            width=width,
            depth=depth,
            heads=width // positions[0][1],
            patch_size=patch,
            window_size=(windows.pop() + 1) // 2 if windows else 0,
            global_blocks=tuple(block for block, (rows, _) in enumerate(positions) if rows == 2 * grid - 1),
            adapter=any(name.startswith(f"{vit}blocks.0.mlp.adapter.") for name in shapes),
        ),
        decoder=DecoderConfig(
            depth=_count(shapes, re.escape(decoder) + r"transformer\.layers\.(\d+)\."),
            heads=decoder_heads,
            mlp_dim=_shape(shapes, f"{decoder}transformer.layers.0.mlp.lin1.weight", 2)[0],
            multimask_outputs=_shape(shapes, f"{decoder}mask_tokens.weight", 2)[0] - 1,
        ),
    )


def llama_sizes(config: Mapping[str, Any], shapes: Shapes, *, where: str, moe: MoEConfig | None) -> LanguageConfig:
    """The language model of a published config.json; InputError when its sizes are not those of the tensors."""
    from transformers import LlamaConfig

    known = {key: config[key] for key in _LLAMA_FIELDS if config.get(key) is not None}
    rows, width = _shape(shapes, "language.model.model.embed_tokens.weight", 2)
    layers = _count(shapes, r"language\.model\.model\.layers\.(\d+)\.")
    gates = (name for name in shapes if re.match(r"language\..*\.mlp\..*gate_proj\.weight$", name))
    mlp = _shape(shapes, next(gates, "language.model.model.layers.0.mlp.gate_proj.weight"), 2)[0]
    # What a configuration leaves out is what transformers takes by default (LLaVA's omits the sizes of Llama-7B); contradictions are not.
    for key, found in (("hidden_size", width), ("num_hidden_layers", layers), ("intermediate_size", mlp)):
        if known.setdefault(key, found) != found:
            raise InputError(where=where, expected=f"{key} {found}, as the tensors have", found=str(known[key]))
    if config.get("rope_scaling"):
        known["rope_scaling"] = config["rope_scaling"]
    return LanguageConfig(vocab_size=rows, hf_config=_configured(LlamaConfig, {"vocab_size": rows, **known}, where=where), moe=moe)


def moe_sizes(config: Mapping[str, Any], *, where: str, layers: int, experts: tuple[str, ...]) -> MoEConfig | None:
    """The `moe` section of a published config.json; None for a dense model.

    Args:
        config: the whole config.json.
        where: file, for errors.
        layers: of the language model.
        experts: names for its experts; default names when empty.
    """
    section = config.get("moe") or {}
    if not isinstance(section, dict):
        raise InputError(where=where, expected="a section moe", found=str(section)[:100])
    if not section.get("moe_enable", bool(section)):
        return None
    counts = section.get("num_experts", 2)
    counts = set(map(str, counts)) if isinstance(counts, list) else {str(counts)}
    if len(counts) != 1 or not min(counts).isdigit() or section.get("use_residual"):
        raise InputError(where=where, expected="one number of experts in all layers and use_residual false", found=str(section)[:100])
    count = int(counts.pop())
    names = experts or (("grounding", "vl") if count == 2 else tuple(f"expert{i}" for i in range(count)))
    if len(names) != count:
        raise InputError(where=where, expected=f"names for {count} experts", found=", ".join(names), remedy="see --options.experts")
    where_layers, top_k = section.get("moe_layers_idx") or list(range(layers)), section.get("top_k_experts", section.get("top_k", 1))
    if not isinstance(where_layers, list) or not all(isinstance(index, int) for index in where_layers):
        raise InputError(where=where, expected="numbers of layers in moe.moe_layers_idx", found=str(where_layers)[:100])
    if not isinstance(top_k, int) or not 1 <= top_k <= count:
        raise InputError(where=where, expected=f"moe.top_k_experts between 1 and {count}", found=str(top_k)[:100])
    gate = "probability" if top_k == 1 else "renormalised"  # published code divides by the sum where several experts are chosen
    return MoEConfig(experts=names, top_k=top_k, gate=gate, layers=() if where_layers == list(range(layers)) else tuple(where_layers))


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor that sizes are read from; InputError when it is missing or has another number of dimensions."""
    found = shapes.get(name)
    if found is None or len(found) != dimensions:
        raise InputError(where="published checkpoint", expected=f"{name} with {dimensions} dimensions",
                         found="no such tensor" if found is None else f"shape {found}")  # fmt: skip
    return found


def _configured(kind: Any, values: dict[str, Any], *, where: str) -> dict[str, Any]:
    """A configuration of transformers as JSON; InputError when its values do not go together."""
    try:
        return kind(**values).to_diff_dict()
    except Exception as error:  # its checks have errors of their own
        raise InputError(where=where, expected=f"sizes of {kind.__name__}", found=" ".join(str(error).split())[:200]) from None


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number that `pattern` finds in the names."""
    return 1 + max((int(found[1]) for name in shapes if (found := re.match(pattern, name))), default=-1)
