"""The sizes of a stage's model where its parents do not exist yet: from the configurations that will write them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from medplib.config import from_dict
from medplib.errors import InputError
from medplib.lineage import CONFIG, Checkpoint, Lineage, load_config
from medplib.models.build import ModelConfig
from medplib.models.language import LanguageConfig
from medplib.training.assemble import parent_roles, resolve_config
from medplib.training.stage import Parent, StageConfig

IMPORTS = "imports"
"""Folder beside the recipes with the sizes of what `python -m medplib.convert` writes."""


@dataclass(frozen=True)
class Import:
    """Sizes of an imported checkpoint: the stage name in its lineage, the folder, the model."""

    stage: str
    output: str
    model: ModelConfig


@dataclass(frozen=True)
class PlannedStage:
    """A stage with the sizes of its model. `data` and `trainer` are the sections of the configuration as they stand."""

    stage: StageConfig
    model: ModelConfig
    data: dict[str, Any]
    trainer: dict[str, Any]


def plan_stage(files: list[Path], *, vocab_size: int | None) -> PlannedStage:
    """Read a stage (later files win) and find out the sizes of its model.

    Args:
        files: configuration files as `python -m medplib.fit` takes them.
        vocab_size: rows of the embedding where no tokenizer and no parent tells; None to demand that one does.

    Raises:
        InputError: a parent that neither exists nor is written by a stage beside this one nor has sizes under imports/.
    """
    merged: dict[str, Any] = {}
    for file in files:
        merged = _merge(merged, _read(file))
    stage = from_dict(StageConfig, merged.get("model", {}).get("stage") or {}, where=f"{files[0]}: model.stage")
    known = _Known(files[0].parent)
    model = _with_vocabulary(known.config(stage), known.tokenizer(stage), vocab_size)
    return PlannedStage(stage, model, merged.get("data", {}), merged.get("trainer", {}))


class _Known:
    """Folders that will exist: outputs of the stages in one folder, and imports."""

    def __init__(self, folder: Path) -> None:
        self.stages: dict[str, StageConfig] = {}
        for file in sorted(folder.glob("stage*.yaml")):
            stage = from_dict(StageConfig, _read(file)["model"]["stage"], where=str(file))
            self.stages[stage.output] = stage
        self.imports: dict[str, Import] = {}
        for file in sorted((folder.parent / IMPORTS).glob("*.yaml")):
            found = from_dict(Import, _read(file), where=str(file))
            self.imports[found.output] = found

    def config(self, stage: StageConfig) -> ModelConfig:
        """Sizes of the model of `stage`, as `medplib.training.assemble` would resolve them."""
        roles = parent_roles(stage)
        parents = {role: self._parent(parent, role=f"stage '{stage.name}' {role}") for role, parent in roles.items()}
        return resolve_config(stage, parents)

    def tokenizer(self, stage: StageConfig) -> str | None:
        """The tokenizer folder that the first ancestor of `stage` names."""
        while stage.tokenizer is None and stage.init.base is not None and stage.init.base.path in self.stages:
            stage = self.stages[stage.init.base.path]
        return stage.tokenizer

    def _parent(self, parent: Parent, *, role: str) -> Checkpoint:
        folder = Path(parent.path)
        if (folder / CONFIG).exists():
            return Checkpoint(folder, load_config(folder), Lineage(stage=parent.stage, trained=(), steps=0))
        if parent.path in self.stages:
            written, model = self.stages[parent.path].name, self.config(self.stages[parent.path])
        elif parent.path in self.imports:
            written, model = self.imports[parent.path].stage, self.imports[parent.path].model
        else:
            known = ", ".join([*self.stages, *self.imports]) or "nothing"
            raise InputError(where=f"{role} {parent.path}", expected="a folder that exists or that a configuration beside it writes",
                             found=f"neither; known: {known}", remedy=f"add its sizes to {IMPORTS}/")  # fmt: skip
        if written != parent.stage:
            raise InputError(where=f"{role} {parent.path}", expected=f"stage '{parent.stage}'", found=f"stage '{written}'")
        return Checkpoint(folder, {"model": asdict(model)}, Lineage(stage=written, trained=(), steps=0))


def _with_vocabulary(config: ModelConfig, tokenizer: str | None, vocab_size: int | None) -> ModelConfig:
    """Sizes with everything written out that pretrained parts and the tokenizer would bring."""
    names = tuple((0,) for _ in config.vision.names)
    config = replace(config, vision=replace(config.vision, pretrained=False, name_ids=names))
    if config.language is None:
        return config
    language = config.language
    if language.pretrained is not None and language.hf_config is None:
        raise InputError(where="model.language", expected="hf_config, the sizes of the pretrained model",
                         found=f"only {language.pretrained}", remedy="copy its config.json into model.language.hf_config")  # fmt: skip
    rows = vocab_size or language.vocab_size or (language.hf_config or {}).get("vocab_size") or _tokenizer_rows(tokenizer)
    return replace(config, language=replace(language, pretrained=None, vocab_size=rows, hf_config=_rows(language, rows)))


def _rows(language: LanguageConfig, rows: int) -> dict[str, Any] | None:
    return None if language.hf_config is None else {**language.hf_config, "vocab_size": rows}


def _tokenizer_rows(folder: str | None) -> int:
    from medplib.tokenizer import load_tokenizer

    if folder is None or not Path(folder).is_dir():
        raise InputError(where="tokenizer", expected="a tokenizer folder, to know the rows of the embedding", found=str(folder),
                         remedy="give --vocab_size")  # fmt: skip
    return len(load_tokenizer(folder))


def _read(file: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(where=file, expected="a readable YAML file", found=str(error).splitlines()[0]) from None
    if not isinstance(data, dict):
        raise InputError(where=file, expected="a mapping", found=type(data).__name__)
    return data


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged, everything else is replaced, as the training command does."""
    both = {key: _merge(below[key], above[key]) for key in above if isinstance(above[key], dict) and isinstance(below.get(key), dict)}
    return {**below, **above, **both}
