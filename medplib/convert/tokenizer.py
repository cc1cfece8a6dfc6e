"""The tokenizer of a published folder, with the behaviour that its model was trained with.

Published models used the slow LLaMA tokenizer of transformers 4.31: spaces around added tokens are dropped, and every stretch of text
between them is encoded as a sentence of its own. Written out here as a fast tokenizer that keeps these rules when saved and loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from medplib.errors import InputError
from medplib.models.pretrained import refuse_code
from medplib.tokens import IMAGE_END, IMAGE_START, REGION_END, REGION_START, SEG

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PUBLISHED_TOKENS = (
    SEG, "<ref>", "</ref>", REGION_START, REGION_END, "<sr>", "</sr>", "<mask>", "</mask>",
    *(f"<gen_{i}>" for i in range(1, 257)), IMAGE_START, IMAGE_END,
)  # fmt: skip
"""Added to the vocabulary of the language model in this order."""


def exported_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder that `export_published` wrote, as it is; by name, because the folder's model class is foreign.

    Raises:
        InputError: no tokenizer there.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(where=folder, expected="tokenizer.json", found=str(error).splitlines()[0][:120]) from None


def published_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load a LLaMA tokenizer folder (tokenizer.model or tokenizer.json) as published models use it; missing added tokens are appended.

    Raises:
        InputError: no tokenizer there, or no begin or end token.
    """
    from tokenizers import AddedToken, normalizers
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    kept = [file for file in ("tokenizer.json", "tokenizer.model") if (Path(folder) / file).is_file()]
    if not kept:  # transformers would make an empty one
        raise InputError(where=folder, expected="a folder with tokenizer.json or tokenizer.model", found="none of them",
                         remedy="give it with --options.tokenizer")  # fmt: skip
    settings = Path(folder) / "tokenizer_config.json"
    try:
        if settings.is_file():
            refuse_code(json.loads(settings.read_text(encoding="utf-8")), where=settings)
        # By name: the class that the folder's own config.json asks for exists in the published code only.
        kind = PreTrainedTokenizerFast if kept[0] == "tokenizer.json" else LlamaTokenizer
        loaded = kind.from_pretrained(str(folder))
    except InputError:
        raise
    except Exception as error:  # broken files make it raise whatever they hit upon
        found = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
        raise InputError(where=folder, expected=f"a LLaMA tokenizer ({kept[0]})", found=found) from None
    if loaded.bos_token is None or loaded.eos_token is None:
        raise InputError(where=folder, expected="a tokenizer with begin and end tokens", found=type(loaded).__name__)
    backend = loaded.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    added = [AddedToken(token, normalized=False, special=True, lstrip=True, rstrip=True) for token in PUBLISHED_TOKENS]
    backend.add_special_tokens(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=loaded.unk_token,
        bos_token=loaded.bos_token,
        eos_token=loaded.eos_token,
        pad_token=loaded.pad_token or loaded.unk_token,
        model_max_length=loaded.model_max_length,
    )
