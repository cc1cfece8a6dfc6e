"""Low-rank adapters by peft: added before a stage, merged into plain weights after it."""

from __future__ import annotations

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from medplib.errors import InputError
from medplib.models.language import LanguageModel
from medplib.training.stage import LoraOptions


def add_lora(language: LanguageModel, options: LoraOptions) -> None:
    """Wrap the targeted linear layers of the decoder, those inside every expert included (each expert has its own adapter)."""
    names = [
        name
        for name, module in language.model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in options.targets
    ]
    if not names:
        raise InputError(where="stage.lora.targets", expected="names of linear layers", found=", ".join(options.targets))
    config = LoraConfig(r=options.r, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=names, bias="none")
    inject_adapter_in_model(config, language.model)


def merge_lora(language: LanguageModel) -> None:
    """Fold every adapter into its layer and put the plain layer back; does nothing without adapters."""
    wrapped = [(name, module) for name, module in language.model.named_modules() if isinstance(module, LoraLayer)]
    for name, module in wrapped:
        module.merge()
        parent_name, _, child = name.rpartition(".")
        setattr(language.model.get_submodule(parent_name), child, module.get_base_layer())
