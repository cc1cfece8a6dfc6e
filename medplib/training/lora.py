"""Low-rank adapters by peft: added before a stage, merged into plain weights after it."""

from __future__ import annotations

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from medplib.errors import InputError
from medplib.models.medplib import MedPLIB
from medplib.training.stage import LoraOptions


def add_lora(model: MedPLIB, options: LoraOptions) -> None:
    """Wrap the targeted linear layers of the decoder, those inside every expert included (each expert has its own adapter)."""
    language = model.language
    if language is None:
        raise InputError(where="stage.lora", expected="a model with a language model", found="a grounder alone")
    names = [
        name
        for name, module in language.model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in options.targets
    ]
    if not names:
        raise InputError(where="stage.lora.targets", expected="names of linear layers", found=", ".join(options.targets))
    config = LoraConfig(r=options.r, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=names, bias="none")
    inject_adapter_in_model(config, language.model)


def merge_lora(model: MedPLIB) -> None:
    """Fold every adapter into its layer and put the plain layer back; does nothing without adapters."""
    wrapped = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, module in wrapped:
        module.merge()
        parent_name, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent_name), child, module.get_base_layer())
