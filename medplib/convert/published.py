"""Published MedPLIB and LLaVA-1.5 folders -> checkpoint folders of this project, and back, bit by bit.

What a published folder holds besides weights that we have (buffers that a model computes itself, its config.json and tokenizer.model) is
kept in the subfolder `published` of the checkpoint, so that the way back gives the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medplib.config import from_dict
from medplib.convert.sizes import clip_sizes, llama_sizes, moe_sizes, sam_sizes
from medplib.convert.template import TRAINING
from medplib.convert.tokenizer import exported_tokenizer, published_tokenizer
from medplib.errors import InputError
from medplib.lineage import CONFIG, TOKENIZER, WEIGHTS, Checkpoint, Lineage, SourceStamp, save_checkpoint, sha256_file
from medplib.models.bridge import BUFFERS, one_to_one, our_names, published_layout, published_name
from medplib.models.build import ModelConfig, build_model
from medplib.models.language import TOKEN_TABLES
from medplib.models.pretrained import refuse_code
from medplib.models.projector import ProjectorConfig
from medplib.paths import new_folder
from medplib.tensorfiles import StoredTensor, open_tensors, shard_plan, tensor_files, write_safetensors

KEPT = "published"
SHARD_BYTES = 5 * 10**9
LISTED = 5
"""Names of tensors that an error shows before it only counts them."""
LLAVA_LACKS = ("region.", "seg_projector.", "grounder.")
"""Parts that a LLaVA checkpoint does not have; stages that start from it take them elsewhere or list them as fresh."""
_PUBLISHED_EXTRAS = ("tokenizer.model",)


@dataclass(frozen=True)
class ImportOptions:
    """How to read a published folder.

    Args:
        stage: name written into the lineage; stages that start from the checkpoint name it.
        experts: our names of experts 0, 1, ...; empty = grounding, vl for two.
        clip: configuration of the CLIP tower (JSON file or a folder with config.json); None derives it from the tensors. The path that
            published folders carry is never looked at.
        vision: weights of the CLIP tower (file or folder), for checkpoints without it (LLaVA-1.5).
        tokenizer: tokenizer folder, when it is not in the published folder.
        drop: prefixes of published names to leave out, each reported with its number of tensors.
        legacy: reproduce the published code where this project departs from it (docs/differences.md).
    """

    stage: str = "published"
    experts: tuple[str, ...] = ()
    clip: str | None = None
    vision: str | None = None
    tokenizer: str | None = None
    drop: tuple[str, ...] = ()
    legacy: bool = False


def import_published(folder: Path, out: Path, options: ImportOptions, *, say: Callable[[str], None] = lambda line: None) -> Lineage:
    """Write checkpoint folder `out` from a published folder.

    Args:
        folder: weights, config.json, tokenizer.
        out: new folder.
        options: see there.
        say: told one line about everything that was left out or added.

    Raises:
        InputError: an unreadable file, tensors that belong nowhere, are missing or have another shape (all of them counted), sizes that
            contradict the tensors.
    """
    raw = _read_config(folder)
    own = _own_section(raw, where=f"{folder}/config.json")
    config = {**raw, **(raw.get("text_config") or {})}  # transformers keeps the sizes of LLaVA's language model there
    opened = open_tensors(folder)
    layout = one_to_one({name: published_layout(name) for name in opened}, where=folder)
    stored = _dropped({layout[name]: tensor for name, tensor in opened.items()}, options.drop, say)
    if options.vision is not None:
        stored |= _tower(Path(options.vision))
    tokenizer = published_tokenizer(options.tokenizer or folder) if own is None else exported_tokenizer(folder)
    layers = config.get("num_hidden_layers", 0)
    moe = None if own is not None else moe_sizes(config, where=f"{folder}/config.json", layers=layers, experts=options.experts)
    experts = own[1] if own is not None else (moe.experts if moe else ())
    names = one_to_one(our_names(stored, experts=experts), where=folder)
    tensors = {names[name]: tensor for name, tensor in stored.items() if name in names}
    added = _more_rows(tensors, len(tokenizer), say)
    tensors |= added
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    optional: tuple[str, ...] = ()
    if own is not None:
        model = own[0]
    else:
        language = llama_sizes(config, shapes, where=f"{folder}/config.json", moe=moe)
        with_grounder = any(name.startswith("grounder.") for name in shapes)
        model = ModelConfig(
            vision=clip_sizes(shapes, _clip(options.clip), name="clip"),
            projector=ProjectorConfig(kind="linear" if config.get("mm_projector_type") == "linear" else "mlp"),
            language=language,
            grounder=sam_sizes(shapes) if with_grounder else None,
            template=TRAINING,
            legacy=options.legacy,
            max_length=_text_length(config, where=f"{folder}/config.json"),
        )
        model = replace(model, max_length=model.max_length + model.image_tokens)
        optional = () if with_grounder else LLAVA_LACKS
    _check(tensors, model, len(tokenizer), optional=optional, where=str(folder))
    lineage = Lineage(stage=options.stage, trained=(), steps=0, sources=_stamps(folder))
    buffers = {name: tensor for name, tensor in stored.items() if BUFFERS.search(name)}

    def keep_extras(build: Path) -> None:
        (build / KEPT).mkdir()
        if added or config != raw:  # the file as it came would not describe the tensors on the way back
            (build / KEPT / CONFIG).write_text(json.dumps({**config, "vocab_size": model.language.vocab_size}, indent=1) + "\n")
        else:
            shutil.copyfile(folder / CONFIG, build / KEPT / CONFIG)
        if buffers:
            write_safetensors(build / KEPT / WEIGHTS, buffers)
        for extra in _PUBLISHED_EXTRAS:
            if (folder / extra).exists():
                shutil.copyfile(folder / extra, build / KEPT / extra)

    saved = {"tensors": tensors, "config": {"model": asdict(model)}, "save_tokenizer": tokenizer.save_pretrained, "lineage": lineage}
    return save_checkpoint(out, **saved, also=keep_extras)


EXTENDED = "medplib"
"""Section of an exported config.json that holds our own configuration: sizes that the published code has no words for."""


def export_published(checkpoint: Checkpoint, out: Path, *, say: Callable[[str], None] = lambda line: None) -> None:
    """Write a published-layout folder from a checkpoint: sharded safetensors with an index, config.json, tokenizer.

    Parts that the published code does not know keep our names behind a prefix and are told to `say`.
    """
    model = from_dict(ModelConfig, checkpoint.config["model"], where=f"{checkpoint.folder}/{CONFIG}: model")
    experts = model.language.moe.experts if model.language.moe else ()
    tensors = open_tensors(checkpoint.folder / WEIGHTS)
    published = {published_name(name, experts=experts): tensor for name, tensor in tensors.items()}
    own = sorted(name for name in published if name.startswith(f"{EXTENDED}."))
    if own:
        say(f"{len(own)} tensors have no published name and are written as {EXTENDED}.*, such as {own[0]}")
    kept = checkpoint.folder / KEPT
    if (kept / WEIGHTS).exists():
        published |= open_tensors(kept / WEIGHTS)
    if model.language.moe is not None and model.language.moe.gate == "renormalised" and model.language.moe.top_k == 1:
        say("the published code scales the one chosen expert by its probability; this model was trained without (gate: renormalised)")
    with new_folder(out) as build:
        _write_shards(build, dict(sorted(published.items())))
        if (kept / CONFIG).exists():
            shutil.copyfile(kept / CONFIG, build / CONFIG)
        else:
            (build / CONFIG).write_text(json.dumps(_published_config(model, experts), indent=1) + "\n")
        for file in sorted((checkpoint.folder / TOKENIZER).iterdir()):
            shutil.copyfile(file, build / file.name)
        for extra in _PUBLISHED_EXTRAS:
            if (kept / extra).exists():
                shutil.copyfile(kept / extra, build / extra)


def _published_config(model: ModelConfig, experts: Sequence[str]) -> dict[str, Any]:
    """What published code reads, and our own configuration for the way back."""
    language = model.language
    sizes = language.hf_config or {
        "hidden_size": language.hidden_size, "num_hidden_layers": language.layers, "num_attention_heads": language.heads,
        "intermediate_size": language.mlp_size, "vocab_size": language.vocab_size,
    }  # fmt: skip
    config = {
        **sizes, "model_type": "medplib_moe_llama" if experts else "medplib", "out_dim": 256, "train_mask_decoder": True,
        "max_sample_point": 512, "mm_vision_tower": model.vision.name, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
        "mm_use_im_start_end": True, "image_aspect_ratio": "pad",
    }  # fmt: skip
    if language.moe is not None:
        layers = list(language.moe.layers or range(sizes["num_hidden_layers"]))
        config["moe"] = {
            "moe_enable": True, "moe_mode": "custom" if language.moe.layers else "dense", "moe_layers_idx": layers,
            "num_experts": [len(experts)] * len(layers), "top_k_experts": language.moe.top_k, "capacity_factor": 1.5,
            "eval_capacity_factor": 2.0, "min_capacity": 0, "ep_size": 1, "use_residual": False, "router_aux_loss_coef": 0.0,
        }  # fmt: skip
    return {**config, EXTENDED: {"model": asdict(model), "experts": list(experts)}}


def _write_shards(folder: Path, tensors: dict[str, StoredTensor]) -> None:
    shards = shard_plan(tensors, limit=SHARD_BYTES)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    file = folder / name
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(where=file, expected="the config.json of a published folder", found=type(error).__name__) from None
    if not isinstance(config, dict):
        raise InputError(where=file, expected="an object", found=type(config).__name__)
    refuse_code(config, where=file)
    return config


def _own_section(config: dict[str, Any], *, where: str) -> tuple[ModelConfig, tuple[str, ...]] | None:
    """Our configuration and the names of the experts in the config.json of a folder that we exported; None for others."""
    if EXTENDED not in config:
        return None
    section = config[EXTENDED]
    if not isinstance(section, dict) or not isinstance(section.get("experts"), list) or not isinstance(section.get("model"), dict):
        raise InputError(where=where, expected=f"model and experts in the section {EXTENDED}", found=str(section)[:80])
    model = from_dict(ModelConfig, section["model"], where=f"{where}: {EXTENDED}.model")
    if model.language is None or model.language.pretrained or model.vision.pretrained:
        raise InputError(
            where=where, expected=f"a whole model in {EXTENDED}.model", found="parts that come from elsewhere or no language model"
        )
    return model, tuple(map(str, section["experts"]))


def _clip(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    config = _read_config(Path(path), name="" if Path(path).is_file() else CONFIG)
    return config.get("vision_config", config)


def _text_length(config: dict[str, Any], *, where: str) -> int:
    """Tokens of text that the model was trained with, without those of the image."""
    found = config.get("tokenizer_model_max_length") or 2048
    if not isinstance(found, int) or found < 1:
        raise InputError(where=where, expected="tokenizer_model_max_length, a number of tokens", found=str(found)[:60])
    return found


def _tower(path: Path) -> dict[str, StoredTensor]:
    """A CLIP file under the names that published folders give its vision tower; the text side is left alone."""
    found = {name: tensor for name, tensor in open_tensors(path).items() if name.startswith("vision_model.")}
    if not found:
        raise InputError(where=path, expected="a CLIP model (vision_model.*)", found="no such tensors")
    return {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in found.items()}


def _dropped(stored: dict[str, StoredTensor], drop: Sequence[str], say: Callable[[str], None]) -> dict[str, StoredTensor]:
    for prefix in drop:
        left = [name for name in stored if name.startswith(prefix)]
        say(f"left out {len(left)} tensors {prefix}*")
        stored = {name: tensor for name, tensor in stored.items() if name not in set(left)}
    return stored


def _more_rows(tensors: dict[str, StoredTensor], rows: int, say: Callable[[str], None]) -> dict[str, StoredTensor]:
    """Embedding and head with rows for added tokens, each the mean of the rows that are there; nothing when there are enough."""
    more = {}
    for name in TOKEN_TABLES:
        table = tensors.get(name)
        if table is None or table.shape[0] >= rows:
            continue
        say(f"{name}: {rows - table.shape[0]} rows added for new tokens, each the mean of the others")
        values = table.read()
        mean = values.float().mean(dim=0, keepdim=True).to(values.dtype)
        more[name] = StoredTensor.of(torch.cat([values, mean.expand(rows - len(values), -1)]))
    return more


def _check(tensors: dict[str, StoredTensor], model: ModelConfig, rows: int, *, optional: tuple[str, ...], where: str) -> None:
    """Compare names and shapes with an empty model of the same sizes; every difference is counted and some are named."""
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build_model(model, vocab_size=rows).state_dict().items()}
    missing = [name for name in expected if name not in tensors and not name.startswith(optional or ("\0",))]
    extra = [name for name in tensors if name not in expected]
    shapes = [name for name in expected if name in tensors and tensors[name].shape != expected[name]]
    types = [name for name in expected if name in tensors and not tensors[name].dtype.is_floating_point]
    problems = []
    for names, what in ((missing, "missing"), (extra, "left over"), (shapes, "of another shape"), (types, "no floating-point numbers")):
        if names:
            shown = [name + (f" {tensors[name].shape} instead of {expected[name]}" if names is shapes else "") for name in names[:LISTED]]
            problems.append(f"{len(names)} {what} ({', '.join(shown)}{', ...' if len(names) > LISTED else ''})")
    if problems:
        raise InputError(where=where, expected=f"the {len(expected)} tensors of a model of these sizes", found="; ".join(problems))


def _stamps(folder: Path) -> tuple[SourceStamp, ...]:
    return tuple(SourceStamp(file.name, sha256_file(file), len(open_tensors(file))) for file in tensor_files(folder))
