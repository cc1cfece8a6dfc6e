"""The text side of the vocabulary: train a small tokenizer, load one, add the special tokens in their fixed order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from medplib.errors import InputError
from medplib.tokens import SPECIAL_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer (any input can be written with it) of at most `vocab_size` entries, special tokens last.

    For models trained from scratch; a pretrained language model brings its own tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>")
    return with_special_tokens(fast)


def with_special_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Add those of SPECIAL_TOKENS that are missing, in order, so that every stage numbers them alike; pad becomes unk when unset."""
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    missing = [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS if token not in known]
    tokenizer.add_tokens(missing, special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer folder (or, for pretrained language models, a hub id) and make sure the special tokens are there."""
    from transformers import AutoTokenizer

    remedy = "make one with `python -m medplib.prepare tokenizer`, or name a language model that has one"
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:  # broken files make it raise whatever they hit upon
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(where=path, expected="a tokenizer folder", found=found, remedy=remedy) from None
    words = set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens)
    if not words:  # some of its classes start empty where files are missing
        raise InputError(where=path, expected="a tokenizer folder", found="no vocabulary", remedy=remedy)
    return with_special_tokens(tokenizer)
