"""The language model: any causal LM of transformers behind four calls (embed, hidden states, logits, cache)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from medplib.errors import InputError
from medplib.models import attention
from medplib.models.moe import MoEConfig, MoEMLP, Routing, install_experts
from medplib.models.precision import lengthened
from medplib.models.pretrained import load_pretrained

TOKEN_TABLES = ("language.model.model.embed_tokens.weight", "language.model.lm_head.weight")
"""Names of embedding and head among the weights of a model."""

_COMPILED = ("RMSNorm", "Attention", "MLP")
"""Ends of the names of classes that `LanguageModel.compile_layers` compiles."""

_WORD_SCALE = 0.3
"""Deviation of fresh word embeddings: of the size of what a layer adds to them."""


@dataclass(frozen=True)
class LanguageConfig:
    """Which language model.

    Args:
        pretrained: local folder or hub id; sizes and weights come from there. None builds a Llama of the sizes below.
        hidden_size, layers, heads, mlp_size: sizes of a model from scratch.
        vocab_size: rows of the embedding; 0 = as many as the tokenizer has.
        hf_config: the configuration (JSON) of a pretrained model, written into checkpoints so that they load without it.
        moe: experts in every layer, or None for a dense model.
    """

    pretrained: str | None = None
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    mlp_size: int = 352
    vocab_size: int = 0
    hf_config: dict[str, Any] | None = None
    moe: MoEConfig | None = None


class TokenRows(nn.Module):
    """Rows of the embedding and of the head that train while the tables stay: two vectors per token instead of two tables.

    Args:
        ids: the tokens.
        embeddings, head: the tables; their rows are where training starts.
    """

    def __init__(self, ids: tuple[int, ...], embeddings: nn.Embedding, head: nn.Linear) -> None:
        super().__init__()
        self.ids = ids
        self.embedding, self.head = _EmbeddingRows(ids, embeddings.weight), _HeadRows(ids, head.weight)


class _RowsOf(nn.Module):
    """Rows of one table, in a module of their own, which is called: weights that are split among ranks are whole inside a call only."""

    def __init__(self, ids: tuple[int, ...], table: torch.Tensor) -> None:
        super().__init__()
        self.ids, self.weight = ids, nn.Parameter(table.detach()[list(ids)].clone())


class _EmbeddingRows(_RowsOf):
    def forward(self, embeds: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (..., L, D) of ids (..., L) with those of the tokens put in their places."""
        for row, token in zip(self.weight.to(embeds.dtype), self.ids, strict=True):
            embeds = torch.where((ids == token).unsqueeze(-1), row, embeds)
        return embeds


class _HeadRows(_RowsOf):
    def forward(self, logits: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Logits (..., V) of states (..., D) with those of the tokens put in their places."""
        columns = torch.tensor(self.ids, device=logits.device)
        return logits.index_copy(-1, columns, nn.functional.linear(states, self.weight.to(states.dtype)).to(logits.dtype))


class LanguageModel(nn.Module):
    """Wraps a causal LM. `width` is D, `vocab_size` V."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = _causal_lm(config)
        if self.model.get_input_embeddings().num_embeddings != config.vocab_size:
            self.model.resize_token_embeddings(config.vocab_size, mean_resizing=False)
        self.width, self.vocab_size = self.model.config.hidden_size, config.vocab_size
        self.routing = Routing()
        self.rows: TokenRows | None = None
        self.expert_names = config.moe.experts if config.moe else ()
        self.expert_of_task = {task: self.expert_names.index(name) for task, name in config.moe.tasks.items()} if config.moe else {}
        if self.model.config._attn_implementation == "sdpa":
            self.model.config._attn_implementation = attention.NAME
        for module in self.decoder.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.register_forward_hook(_like_input)
        if config.moe is not None:
            install_experts(self.decoder.layers, config.moe, self.routing)

    @property
    def decoder(self) -> nn.Module:
        """The stack of layers under the head."""
        return self.model.model

    @property
    def head(self) -> nn.Linear:
        """The output layer (V, D)."""
        return self.model.get_output_embeddings()

    @property
    def embeddings(self) -> nn.Embedding:
        """The input embedding (V, D)."""
        return self.model.get_input_embeddings()

    def train_rows(self, ids: tuple[int, ...]) -> None:
        """Give the rows of these tokens parameters of their own; folded into the tables when the stage is written."""
        self.rows = TokenRows(ids, self.embeddings, self.head)

    def recompute_layers(self, count: int | None = None) -> None:
        """From now on keep only the inputs of the first `count` layers (None = all) in training and compute the rest again on the way back.

        Raises:
            InputError: more layers than there are.
        """
        layers = self.decoder.layers
        if count is not None and count > len(layers):
            raise InputError(where="stage.checkpointing", expected=f"at most the {len(layers)} layers there are", found=str(count))
        enable = getattr(self.model, "activation_checkpointing_enable", None) or self.model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        for layer in layers[count:] if count is not None else ():
            layer.gradient_checkpointing = False

    def compile_layers(self) -> None:
        """Compile what is many small kernels inside the layers (norms, attention, MLPs); the first step takes up to a minute longer.

        Raises:
            InputError: the decoder has none of them under the names that they have in transformers.
        """
        parts = [m for m in self.decoder.modules() if type(m).__name__.endswith(_COMPILED) and not isinstance(m, MoEMLP)]
        if not parts:
            found = ", ".join(sorted({type(m).__name__ for m in self.decoder.layers[0].modules()}))
            raise InputError(where="stage.compile", expected=f"layers whose parts are called *{', *'.join(_COMPILED)}", found=found)
        for part in parts:
            part.compile(dynamic=True)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (..., L) -> (..., L, D); negative placeholders give row 0, to be overwritten."""
        embeds = self.embeddings(ids.clamp(min=0))
        return embeds if self.rows is None else self.rows.embedding(embeds, ids)

    def hidden(
        self,
        embeds: torch.Tensor,
        *,
        mask: torch.Tensor,
        positions: torch.Tensor,
        token_mask: torch.Tensor | None = None,
        cache: object | None = None,
        unmasked: int = 0,
    ) -> torch.Tensor:
        """Last hidden states after the final norm (B, L, D).

        Args:
            embeds: (B, L, D).
            mask: (B, 1, L, K) bool, True where query L may see key K (K counts cached keys).
            positions: (B, L) rotary positions.
            token_mask: (B, L) bool, tokens that experts route; None = all.
            cache: a transformers cache, extended in place, or None.
            unmasked: so many first tokens of every row see all that is before them and themselves; it must agree with `mask`, and saves
                time.
        """
        self.routing.start(token_mask if self.expert_names else None)
        if torch.amp.is_autocast_available(embeds.device.type) and torch.is_autocast_enabled(embeds.device.type):
            # Layers hand on the type that they compute in. Embeddings that train are float32: every product would cast again.
            embeds = embeds.to(torch.get_autocast_dtype(embeds.device.type))
        if self.model.config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape, dtype=embeds.dtype, device=embeds.device).masked_fill(~mask, torch.finfo(embeds.dtype).min)
        plain = {"unmasked": unmasked} if self.model.config._attn_implementation == attention.NAME else {}
        out = self.decoder(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=cache is not None, **plain
        )
        return out.last_hidden_state

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """States (..., D) -> logits (..., V) in float32."""
        rows = lengthened(states) if states.dim() == 2 else states  # those of labels: another number in every step
        logits = self.head(rows)
        return (logits if self.rows is None else self.rows.head(logits, rows))[: len(states)].float()


def _like_input(_: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
    """Norms whose weights train are float32 and give float32, which every layer behind them would cast to bfloat16 for itself."""
    return out.to(given[0].dtype)


def _causal_lm(config: LanguageConfig) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if config.pretrained is not None:
        return load_pretrained(AutoModelForCausalLM, config.pretrained, dtype="auto")
    if config.hf_config is not None:
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.hf_config), trust_remote_code=False)
    sizes = LlamaConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_size,
        vocab_size=config.vocab_size,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        # Attention scores and layer outputs of order one half: signals pass, none saturates.
        initializer_range=0.7 * config.hidden_size**-0.5,
    )
    model = LlamaForCausalLM(sizes)
    nn.init.normal_(model.get_input_embeddings().weight, std=_WORD_SCALE)
    return model


def prefix_mask(attention_mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """(B, 1, L, L) bool: causal, padding hidden, and a conversation sees the shared prefix (segment 0) and itself only.

    A padding query sees itself, so that no row is empty (an empty row is undefined in softmax).
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
    visible = causal & same & attention_mask[:, None, :]
    return (visible | torch.eye(length, dtype=torch.bool, device=segments.device)).unsqueeze(1)


def states_before(states_BLD: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """States (N, D) that predict the N chosen tokens, given as (B, L - 1) bool of all tokens but the first.

    Their gradient is added where it belongs; that of a boolean index would be sorted first.
    """
    row, column = chosen.nonzero(as_tuple=True)
    return states_BLD.flatten(0, 1).index_select(0, row * states_BLD.shape[1] + column)
