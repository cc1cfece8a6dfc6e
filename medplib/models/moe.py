"""A mixture of named experts where a decoder layer had its MLP (arXiv 2412.09278 section on MoE).

Differences from the published layer, on purpose: no token is dropped (unless a capacity is asked for); padding is not routed; the router
is a permanent float32 parameter; only the chosen experts run (but in captured decoding, see `Routing.fixed_shapes`). Letters: T routed
tokens, D width, E experts, K chosen per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

import torch
from torch import nn

from medplib.errors import InputError
from medplib.models.precision import lengthened
from medplib.models.router import Router
from medplib.types import RouterStats


@dataclass(frozen=True)
class MoEConfig:
    """Experts of the decoder layers.

    Args:
        experts: their names, in order.
        top_k: experts per token.
        gate: what an expert's output is multiplied by. "probability": its softmax probability as published (a single expert's output is
            scaled below one, bug B11); "renormalised": divided by the sum over the chosen, with a straight-through gradient when only
            one is chosen, so that the forward pass equals the expert and the router still learns.
        tasks: task -> the expert that its words are drawn to by the loss term router_task; tasks that are not named are left alone.
        layers: decoder layers that get experts, in order; empty = all of them.
        capacity_factor: in training an expert takes at most ceil(T K / E x factor) tokens, chosen at random, and the others only keep
            their residual, as published (bug B11). 0 = no token is ever dropped.
    """

    experts: tuple[str, ...] = ("grounding", "vl")
    top_k: int = 1
    gate: Literal["probability", "renormalised"] = "renormalised"
    tasks: dict[str, str] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    capacity_factor: float = 0.0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tasks.values()) - set(self.experts)):
            raise InputError(where="moe.tasks", expected=f"experts: {', '.join(self.experts)}", found=", ".join(unknown))


@dataclass
class Routing:
    """What all MoE layers of a model share during one forward: which tokens are real, which expert is forced, what was chosen."""

    real: torch.Tensor | None = None  # (T,) int64 index of the real tokens among the B L of the forward; None when all are real
    forced: int | None = None
    every_expert: bool = False  # also those without a token run when not training, see `MedPLIB.run_every_part`
    fixed_shapes: bool = False  # no shape may depend on what is chosen: every expert runs on every row (for few rows, without gradients)
    probs: list[torch.Tensor] = field(default_factory=list)
    chosen: list[torch.Tensor] = field(default_factory=list)
    squared_sums: list[torch.Tensor] = field(default_factory=list)

    def start(self, token_mask: torch.Tensor | None) -> None:
        """Begin a forward over the tokens of `token_mask` (B, L) bool, True for real ones; None when all are."""
        self.real = None if token_mask is None else token_mask.flatten().nonzero().squeeze(1)
        if self.real is not None and len(self.real) == token_mask.numel():
            self.real = None  # nothing is padding: nothing has to be copied out and in
        self.probs, self.chosen, self.squared_sums = [], [], []

    def stats(self) -> RouterStats | None:
        """The statistics of the forward that just ended; None when an expert was forced or no layer routes."""
        if not self.probs:
            return None
        return RouterStats(torch.stack(self.probs), torch.stack(self.chosen), torch.stack(self.squared_sums))


class MoEMLP(nn.Module):
    """Drop-in for an MLP: (B, L, D) -> (B, L, D).

    Args:
        experts: name -> MLP with the same signature.
        config: top_k and gate.
        width: D.
        routing: shared state; not a module, so it is neither saved nor moved.
    """

    def __init__(self, *, experts: dict[str, nn.Module], config: MoEConfig, width: int, routing: Routing) -> None:
        super().__init__()
        self.experts = nn.ModuleDict(experts)
        self.router = Router(width, len(experts))
        self.top_k, self.gate, self.routing = config.top_k, config.gate, routing
        self.capacity_factor = config.capacity_factor
        self.one_gate = config.top_k == 1 and config.gate == "renormalised"  # an expert's output is not scaled

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        """Route every real token; padding gets zero (only its residual goes on)."""
        experts = list(self.experts.values())
        if self.routing.forced is not None:
            return experts[self.routing.forced](hidden_BLD)
        real = self.routing.real
        flat_TD = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])
        rows_TD = flat_TD if real is None else flat_TD[real]
        weight_TK, chosen_TK = self._route(rows_TD)
        mix = self._mix_all if self.routing.fixed_shapes else self._mix
        mixed_TD = mix(experts, rows_TD, weight_TK, chosen_TK)
        if real is None:
            return mixed_TD.view_as(hidden_BLD)
        return torch.zeros_like(flat_TD).index_copy(0, real, mixed_TD).view_as(hidden_BLD)

    def _mix(self, experts: list[nn.Module], rows_TD: torch.Tensor, weight_TK: torch.Tensor, chosen_TK: torch.Tensor) -> torch.Tensor:
        """Sort the choices by expert, run each expert once on its stretch of rows, put the results back: rows are copied twice in all,
        however many experts there are.
        """
        chosen_N = chosen_TK.flatten()  # N = T K choices
        lengths = _Counts(chosen_N, len(experts))
        order_N = chosen_N.argsort(stable=True)
        back_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))
        sorted_ND = _Reordered.apply(rows_TD, order_N, back_N, self.top_k)
        every = self.training or self.routing.every_expert
        parts = [  # an unused expert still takes part in the graph, so that every rank has its gradients
            expert(lengthened(stretch))[: len(stretch)]
            for expert, stretch in zip(experts, sorted_ND.split(lengths.known()), strict=True)
            if len(stretch) or every
        ]
        out_ND = _Reordered.apply(torch.cat(parts), back_N, order_N, 1)
        if self.one_gate and not (self.training and self.capacity_factor):
            return _StraightThrough.apply(out_ND, weight_TK.to(rows_TD.dtype))
        out_TKD = out_ND.unflatten(0, chosen_TK.shape) * weight_TK.unsqueeze(-1).to(rows_TD.dtype)
        return out_TKD[:, 0] if self.top_k == 1 else out_TKD.sum(dim=1)

    def _mix_all(self, experts: list[nn.Module], rows_TD: torch.Tensor, weight_TK: torch.Tensor, chosen_TK: torch.Tensor) -> torch.Tensor:
        """The same from every expert on every row: more arithmetic, and nothing that the host has to know."""
        all_TED = torch.stack([expert(rows_TD) for expert in experts], dim=1)
        out_TKD = all_TED.gather(1, chosen_TK.unsqueeze(-1).expand(-1, -1, rows_TD.shape[1]))
        return (out_TKD * weight_TK.unsqueeze(-1).to(rows_TD.dtype)).sum(dim=1)

    def _route(self, rows_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and indices (T, K) of the chosen experts."""
        logits_TE = self.router(rows_TD)
        probs_TE = logits_TE.softmax(dim=-1)
        weight_TK, chosen_TK = probs_TE.topk(self.top_k, dim=-1)
        self.routing.probs.append(probs_TE)
        self.routing.chosen.append(chosen_TK)
        self.routing.squared_sums.append(logits_TE.logsumexp(dim=-1).square().mean())
        if self.gate == "renormalised":
            if self.top_k == 1:
                weight_TK = weight_TK + (1 - weight_TK).detach()
            else:
                weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
        if self.training and self.capacity_factor:
            kept_TK = within_capacity(chosen_TK, torch.rand_like(probs_TE), self.capacity_factor)
            weight_TK = weight_TK * kept_TK
        return weight_TK, chosen_TK


def expert_capacity(tokens: int, top_k: int, experts: int, factor: float) -> int:
    """Tokens that one expert takes at most."""
    return min(tokens, ceil(tokens * top_k / experts * factor))


class _Counts:
    """How many of the choices (N,) fell on each expert. The host is told while an accelerator goes on with what was asked of it since."""

    def __init__(self, chosen_N: torch.Tensor, experts: int) -> None:
        counts_E = (chosen_N[:, None] == torch.arange(experts, device=chosen_N.device)).sum(dim=0)  # bincount would wait for the device
        self.told = counts_E.to("cpu", non_blocking=True)
        self.ready = torch.cuda.current_stream(chosen_N.device).record_event() if chosen_N.is_cuda else None

    def known(self) -> list[int]:
        """The numbers, as soon as they are there."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.told.tolist()


class _StraightThrough(torch.autograd.Function):
    """Rows (T, D) as they are; their weights (T, 1), which are one, get the gradient that scaling by them would give."""

    @staticmethod
    def forward(ctx, rows_TD: torch.Tensor, weight_T1: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows_TD)
        return rows_TD.view_as(rows_TD)

    @staticmethod
    def backward(ctx, grad_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (rows_TD,) = ctx.saved_tensors
        return grad_TD, (grad_TD * rows_TD).sum(dim=-1, keepdim=True)


class _Reordered(torch.autograd.Function):
    """Rows (T, D), each taken `copies` times, in the order `order_N` (N = T copies): N, D.

    `back_N` is the inverse of `order_N`: with it the gradient is gathered, too, where autograd would scatter it into zeros.
    """

    @staticmethod
    def forward(ctx, rows_TD: torch.Tensor, order_N: torch.Tensor, back_N: torch.Tensor, copies: int) -> torch.Tensor:
        ctx.save_for_backward(back_N)
        ctx.copies = copies
        return rows_TD.index_select(0, order_N if copies == 1 else order_N // copies)

    @staticmethod
    def backward(ctx, grad_ND: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (back_N,) = ctx.saved_tensors
        grad_ND = grad_ND.index_select(0, back_N)
        return grad_ND if ctx.copies == 1 else grad_ND.unflatten(0, (-1, ctx.copies)).sum(dim=1), None, None, None


def within_capacity(chosen_TK: torch.Tensor, noise_TE: torch.Tensor, factor: float) -> torch.Tensor:
    """Which choices fit into their expert, (T, K) bool: of the tokens that chose an expert those of highest noise."""
    tokens, experts = noise_TE.shape
    capacity = expert_capacity(tokens, chosen_TK.shape[1], experts, factor)
    wanted_TE = torch.zeros_like(noise_TE).scatter(1, chosen_TK, 1.0)
    first_CE = (noise_TE * wanted_TE).topk(capacity, dim=0).indices
    kept_TE = torch.zeros_like(noise_TE, dtype=torch.bool).scatter(0, first_CE, True)
    return kept_TE.gather(1, chosen_TK)


def install_experts(layers: nn.ModuleList, config: MoEConfig, routing: Routing) -> None:
    """Replace `layer.mlp` of the configured decoder layers by an MoEMLP whose experts start as copies of it.

    Raises:
        InputError: a layer that the decoder does not have.
    """
    if config.layers and not set(config.layers) <= set(range(len(layers))):
        raise InputError(where="moe.layers", expected=f"layers 0 to {len(layers) - 1}", found=str(list(config.layers)))
    for layer in (layers[index] for index in config.layers) if config.layers else layers:
        width = next(p for p in layer.mlp.parameters()).shape[1]
        experts = {name: deepcopy(layer.mlp) for name in config.experts}
        layer.mlp = MoEMLP(experts=experts, config=config, width=width, routing=routing)


@contextmanager
def forced_expert(routing: Routing, names: tuple[str, ...], name: str | None) -> Iterator[None]:
    """Within the block every token goes to expert `name` with weight one; None leaves the router in charge."""
    if name is not None and name not in names:
        raise InputError(where="forced expert", expected=f"one of {', '.join(names)}", found=repr(name))
    previous, routing.forced = routing.forced, None if name is None else names.index(name)
    try:
        yield
    finally:
        routing.forced = previous


def task_routing_loss(stats: RouterStats, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the router against the expert that each token's task names, summed per expert.

    The mean over tokens, then over experts, makes every expert count the same: a short answer with a mask must not be outvoted by long
    answers.

    Args:
        stats: of T real tokens.
        wanted: (T,) index of the expert, -1 for tokens that may go anywhere.

    Returns:
        Sums over tokens of the mean over layers (E,), numbers of tokens (E,).
    """
    experts = stats.probs.shape[-1]
    hot_TE = torch.nn.functional.one_hot(wanted.clamp(min=0), experts) * (wanted >= 0)[:, None]
    log_TE = stats.probs.clamp(min=1e-9).log().mean(dim=0)
    return -(log_TE * hot_TE).sum(dim=0), hot_TE.sum(dim=0)


def tokens_of_experts(stats: RouterStats) -> torch.Tensor:
    """How many tokens chose each expert (layers, E) float32."""
    return torch.nn.functional.one_hot(stats.chosen, stats.probs.shape[-1]).sum(dim=(1, 2)).float()


def load_balancing_loss(stats: RouterStats, tokens_LE: torch.Tensor | None = None) -> torch.Tensor:
    """Experts x sum over experts of (mean probability x share of tokens), mean over layers; 1 when balanced (Switch, arXiv 2101.03961).

    Args:
        stats: of the tokens whose probabilities are balanced.
        tokens_LE: numbers of tokens that the shares come from, those of `stats` when None. Over all ranks, experts may specialise in what
            one rank happens to hold (arXiv 2501.11873), and the mean over all tokens does not depend on how ranks share them.
    """
    tokens_LE = tokens_of_experts(stats) if tokens_LE is None else tokens_LE
    share_LE = tokens_LE / tokens_LE.sum(dim=-1, keepdim=True)
    return tokens_LE.shape[-1] * (stats.probs.mean(dim=1) * share_LE).sum(dim=-1).mean()


def router_z_loss(stats: RouterStats) -> torch.Tensor:
    """Mean over layers and tokens of the squared logarithm of the sum of exponentials (ST-MoE, arXiv 2202.08906): keeps logits small."""
    return stats.squared_sums.mean()
