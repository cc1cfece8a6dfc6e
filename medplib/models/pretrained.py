"""Weights of transformers' own models, from a local folder or a hub id: loaded whole or refused in one line.

transformers starts at random what a file lacks and skips what it has too much; here both are errors, and so is a configuration that comes
with code (which would not be run either way).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from medplib.errors import InputError

CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
"""Entries of a config.json that ask for code to be run."""
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|position_ids$")
"""Buffers that older files hold and models compute themselves."""
_REMEDY = "name a folder with config.json and weights, or a hub id that can be reached"


def refuse_code(config: Mapping[str, Any], *, where: str | Path) -> None:
    """InputError when a config.json, or a section of it, asks for code."""
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        if asked := [key for key in CODE if section.get(key)]:
            raise InputError(where=where, expected="a configuration without code", found=f"{asked[0]}: {section[asked[0]]}",
                             remedy="code that comes with a model is never run; remove the entry if the weights do without it")  # fmt: skip


def load_pretrained(kind: Any, name: str, *, beside: tuple[str, ...] = (), **options: Any) -> nn.Module:
    """A model of transformers with all its weights from `name`.

    Args:
        kind: its class, or one of transformers' auto classes.
        name: local folder or hub id.
        beside: prefixes of tensors that the file may hold besides (the text side of CLIP).
        options: for from_pretrained.

    Raises:
        InputError: nothing there, an unreadable file, code asked for, or tensors that are missing, left over or of another shape.
    """
    pretrained_config(name)
    options |= {"trust_remote_code": False, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, info = kind.from_pretrained(name, **options)
    except Exception as error:  # whatever a hostile or broken file makes the reader raise, the file is refused
        raise InputError(where=name, expected="weights of transformers", found=_first_line(error), remedy=_REMEDY) from None
    extra = [key for key in info["unexpected_keys"] if not key.startswith(beside or ("\0",)) and not _COMPUTED.search(key)]
    shapes = sorted(entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"])
    missing = sorted(set(info["missing_keys"]) - set(shapes))
    problems = [
        f"{len(names)} {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for names, what in ((missing, "missing"), (sorted(extra), "left over"), (shapes, "of another shape"))
        if names
    ]
    if problems:
        raise InputError(where=name, expected=f"the tensors of {type(model).__name__} in the sizes of its config.json",
                         found="; ".join(problems), remedy="fetch the folder again")  # fmt: skip
    return model


def pretrained_config(name: str) -> dict[str, Any]:
    """The config.json of `name` (local folder or hub id).

    Raises:
        InputError: none there, or one that asks for code.
    """
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(name)
    except Exception as error:  # network, cache, names and broken files each have errors of their own
        raise InputError(where=name, expected="a model of transformers", found=_first_line(error), remedy=_REMEDY) from None
    if not config:
        raise InputError(where=name, expected="a model of transformers", found="no config.json", remedy=_REMEDY)
    refuse_code(config, where=f"{name}: config.json")
    return config


def load_timm(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
    """A timm model; timm itself refuses weights that are missing or of another shape.

    Raises:
        InputError: weights that cannot be had.
    """
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:
        if not pretrained:  # then it is no file that is at fault
            raise
        raise InputError(where=name, expected="weights that timm has or can fetch", found=_first_line(error),
                         remedy="see timm.list_pretrained(), and whether the hub can be reached") from None  # fmt: skip


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
