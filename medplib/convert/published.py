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
from medplib.models.bridge import BUFFERS, our_names, published_layout, published_name
from medplib.models.build import ModelConfig, build_model
from medplib.models.language import TOKEN_TABLES
from medplib.models.pretrained import refuse_code
from medplib.models.projector import ProjectorConfig
from medplib.paths import new_folder
from medplib.tensorfiles import StoredTensor, open_tensors, shard_plan, write_safetensors

KEPT = "published"
SHARD_BYTES = 5 * 10**9
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
    config = _read_config(folder)
    config = {**config, **(config.get("text_config") or {})}  # transformers keeps the sizes of LLaVA's language model there
    stored = _dropped({published_layout(name): tensor for name, tensor in open_tensors(folder).items()}, options.drop, say)
    if options.vision is not None:
        stored |= _tower(Path(options.vision))
    tokenizer = published_tokenizer(options.tokenizer or folder) if EXTENDED not in config else exported_tokenizer(folder)
    layers = config.get("num_hidden_layers", 0)
    moe = None if EXTENDED in config else moe_sizes(config, where=f"{folder}/config.json", layers=layers, experts=options.experts)
    experts = tuple(config[EXTENDED]["experts"]) if EXTENDED in config else (moe.experts if moe else ())
    names = our_names(stored, experts=experts)
    tensors = {names[name]: tensor for name, tensor in stored.items() if name in names}
    tensors |= _more_rows(tensors, len(tokenizer), say)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if EXTENDED in config:
        model = from_dict(ModelConfig, config[EXTENDED]["model"], where=f"{folder}/config.json: {EXTENDED}.model")
        optional: tuple[str, ...] = ()
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
            max_length=int(config.get("tokenizer_model_max_length") or 2048),  # of the text alone
        )
        model = replace(model, max_length=model.max_length + model.image_tokens)
        optional = () if with_grounder else LLAVA_LACKS
    _check(tensors, model, len(tokenizer), optional=optional, where=str(folder))
    lineage = Lineage(stage=options.stage, trained=(), steps=0, sources=_stamps(folder))
    buffers = {name: tensor for name, tensor in stored.items() if BUFFERS.search(name)}

    def keep_extras(build: Path) -> None:
        (build / KEPT).mkdir()
        (build / KEPT / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
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
    config = _published_config(model, kept, experts)
    with new_folder(out) as build:
        _write_shards(build, dict(sorted(published.items())))
        (build / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        for file in sorted((checkpoint.folder / TOKENIZER).iterdir()):
            shutil.copyfile(file, build / file.name)
        for extra in _PUBLISHED_EXTRAS:
            if (kept / extra).exists():
                shutil.copyfile(kept / extra, build / extra)


def _published_config(model: ModelConfig, kept: Path, experts: Sequence[str]) -> dict[str, Any]:
    """The kept config.json of an imported checkpoint; else the sizes that published code reads, and ours for the way back."""
    if (kept / CONFIG).exists():
        return json.loads((kept / CONFIG).read_text())
    language = model.language
    sizes = language.hf_config or {
        "hidden_size": language.hidden_size, "num_hidden_layers": language.layers, "num_attention_heads": language.heads,
        "intermediate_size": language.mlp_size, "vocab_size": language.vocab_size,
    }  # fmt: skip
    config = {**sizes, "model_type": "medplib_moe_llama" if experts else "medplib", "out_dim": 256, "train_mask_decoder": True}
    if language.moe is not None:
        layers = list(language.moe.layers or range(sizes["num_hidden_layers"]))
        config["moe"] = {
            "moe_enable": True, "moe_layers_idx": layers, "num_experts": [len(experts)] * len(layers),
            "top_k_experts": language.moe.top_k, "use_residual": False,
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


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(where=file, expected="the config.json of a published folder", found=type(error).__name__) from None
    if not isinstance(config, dict):
        raise InputError(where=file, expected="an object", found=type(config).__name__)
    refuse_code(config, where=file)
    return config


def _clip(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    file = Path(path) / CONFIG if Path(path).is_dir() else Path(path)
    config = _read_config(file.parent) if file.name == CONFIG else json.loads(file.read_text(encoding="utf-8"))
    return config.get("vision_config", config)


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
    problems = []
    for names, what in ((missing, "missing"), (extra, "left over"), (shapes, "of another shape")):
        if names:
            first = names[0] + (f" {tensors[names[0]].shape} instead of {expected[names[0]]}" if what == "of another shape" else "")
            problems.append(f"{len(names)} {what} ({first}{', ...' if len(names) > 1 else ''})")
    if problems:
        raise InputError(where=where, expected=f"the {len(expected)} tensors of a model of these sizes", found="; ".join(problems))


def _stamps(folder: Path) -> tuple[SourceStamp, ...]:
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pth") and p.name != "training_args.bin")
    return tuple(SourceStamp(file.name, sha256_file(file), len(open_tensors(file))) for file in files)
