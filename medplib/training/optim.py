"""The optimiser of every stage: AdamW, with orthogonalised momentum (Muon) for the weight matrices of chosen parts.

Muon (K. Jordan and others, 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
semi-orthogonal one, so that every direction of the matrix learns at one rate. From scratch and on a small budget it learns markedly more
per step than AdamW (docs/experiments.md).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import nn

from medplib.errors import InputError
from medplib.training.neighbours import DividedWork
from medplib.training.parts import covers, part_of
from medplib.training.stage import OptimConfig

MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration: they inflate small singular values fastest and leave all of them near one."""


_BFLOAT16_AT_ONCE = 3
"""So many iterations on one Gram matrix in bfloat16: four or five lose small singular values to rounding, and large ones grow to ten."""


def orthogonalised(matrices: Sequence[torch.Tensor], *, iterations: int = 5, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The nearest semi-orthogonal matrices, roughly: singular values end between about 0.7 and 1.2.

    Each iteration multiplies small singular values by 3.4. What is smaller than a 700th of the norm of its matrix before stays below 0.7
    after five iterations, what is smaller than a 60th after three.

    Args:
        matrices: (rows, columns) each, of any shapes; those with equally many rows or columns, whichever are fewer, share their products.
        iterations: of Newton and Schulz, at least one.
        dtype: of the products, float32 or bfloat16.

    Returns:
        The same shapes, float32.
    """
    of_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        of_shape[matrix.shape].append(index)
    stacks = [_units(torch.stack([matrices[index] for index in members])).to(dtype) for members in of_shape.values()]
    of_height: dict[int, list[int]] = defaultdict(list)
    for number, x in enumerate(stacks):
        of_height[x.shape[1]].append(number)
    at_once = iterations if dtype == torch.float32 else _BFLOAT16_AT_ONCE
    for done in range(0, iterations, at_once):
        for numbers in of_height.values():
            grams = torch.cat([stacks[number] @ stacks[number].mT for number in numbers])
            factors = _factors(grams, min(at_once, iterations - done)).split([len(stacks[number]) for number in numbers])
            for number, factor in zip(numbers, factors, strict=True):
                stacks[number] = factor @ stacks[number]
    result = list(matrices)
    for members, x in zip(of_shape.values(), stacks, strict=True):
        tall = x.shape[1:] != matrices[members[0]].shape
        for index, one in zip(members, x.float().mT if tall else x.float(), strict=True):
            result[index] = one
    return result


def _units(matrices: torch.Tensor) -> torch.Tensor:
    """(K, rows, columns) as float32 of Frobenius norm one, turned where there are more rows than columns."""
    x = matrices.float()
    x = x.mT if x.shape[1] > x.shape[2] else x
    return x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]


def _factors(grams: torch.Tensor, iterations: int) -> torch.Tensor:
    """Square matrices (K, rows, rows) that matrices of these Gram matrices (K, rows, rows) are multiplied by in so many iterations.

    Every iteration multiplies x by a polynomial of its Gram matrix. These factors commute, so they are gathered among small square matrices
    and meet the wide matrix once (a flattened convolution is ten times as wide as high).
    """
    factor = step = _polynomial(grams)
    for _ in range(iterations - 1):
        grams = step @ grams @ step
        step = _polynomial(grams)
        factor = step @ factor
    return factor


def _polynomial(grams: torch.Tensor) -> torch.Tensor:
    a, b, c = _NEWTON_SCHULZ
    step = torch.baddbmm(grams, grams, grams, beta=b, alpha=c)
    step.diagonal(dim1=1, dim2=2).add_(a)
    return step


class MuonAdamW(torch.optim.AdamW):
    """AdamW for most groups; groups with `muon` true hold matrices (or convolutions, flattened to matrices) and follow Muon.

    Args:
        groups: parameter groups with the keys params, lr, name and muon.
        betas, weight_decay: of AdamW; the decay is decoupled in both.
        iterations, dtype: of Muon, see `orthogonalised`.
    """

    def __init__(
        self, groups: Iterable[dict], *, betas: tuple[float, float], weight_decay: float, iterations: int, dtype: torch.dtype
    ) -> None:
        groups, self.iterations, self.dtype = list(groups), iterations, dtype
        self.divided: DividedWork | None = None
        """How ranks that all have all gradients share the work on matrices; None = each does all of it."""
        super().__init__(groups, lr=groups[0]["lr"], betas=betas, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update; the closure, when given, computes loss and gradients first."""
        loss = None
        if closure is not None:  # before the groups are divided: closures zero and clip the gradients of all of them
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._muon(group)
        return loss

    def _muon(self, group: dict) -> None:
        moved: list[tuple[nn.Parameter, torch.Tensor]] = []
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
                state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
            state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
            moved.append((parameter, parameter.grad.lerp(state["momentum"], MOMENTUM).flatten(1)))
        compute = partial(orthogonalised, iterations=self.iterations, dtype=self.dtype)
        parameters, momenta = [parameter for parameter, _ in moved], [momentum for _, momentum in moved]
        updates = compute(momenta) if self.divided is None else self.divided.all_of(compute, parameters, momenta)
        for (parameter, _), update in zip(moved, updates, strict=True):
            # A tall matrix has fewer directions than outputs: the root keeps the change of the output at one size.
            rate = group["lr"] * max(1.0, update.shape[0] / update.shape[1]) ** 0.5
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.reshape(parameter.shape).to(parameter.dtype), alpha=-rate)


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether Muon can treat it: a matrix or convolution with at least eight rows and columns."""
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= 8


def build_optimizer(
    config: OptimConfig, parameters: Iterable[tuple[str, nn.Parameter]], *, dtype: torch.dtype = torch.float32
) -> MuonAdamW:
    """One group per learning rate and kind.

    Args:
        config: rates by part, and the parts whose matrices follow Muon.
        parameters: (name, parameter) of everything that trains.
        dtype: of the products of Muon.
    """
    names: dict[float, list[str]] = {config.lr: ["all_else"]}
    for part, lr in config.lr_by_part.items():
        names.setdefault(lr, []).append(part)
    if config.muon_iterations < 1:
        raise InputError(where="optim.muon_iterations", expected="at least 1", found=str(config.muon_iterations), remedy="5 is usual")
    parameters = list(parameters)
    trained = {part_of(name) for name, _ in parameters}
    if silent := [group for group in (*config.lr_by_part, *config.muon) if not any(covers(group, part) for part in trained)]:
        raise InputError(where="optim.lr_by_part and optim.muon", expected=f"parts that train: {', '.join(sorted(trained))}",
                         found=", ".join(silent))  # fmt: skip
    adam: dict[float, list[nn.Parameter]] = defaultdict(list)
    muon: list[nn.Parameter] = []
    for name, parameter in parameters:
        part = part_of(name)
        if any(covers(group, part) for group in config.muon) and is_matrix(parameter):
            muon.append(parameter)
            continue
        fitting = [group for group in config.lr_by_part if covers(group, part)]
        adam[config.lr_by_part[max(fitting, key=len)] if fitting else config.lr].append(parameter)
    groups = [{"params": found, "lr": lr, "name": "+".join(names[lr]), "muon": False} for lr, found in adam.items()]
    if muon:
        groups.append({"params": muon, "lr": config.muon_lr, "name": "muon", "muon": True})
    return MuonAdamW(groups, betas=config.betas, weight_decay=config.weight_decay, iterations=config.muon_iterations, dtype=dtype)


def rate_factor(config: OptimConfig, step: int, steps: int) -> float:
    """What all learning rates are multiplied by at `step` of `steps`: linear warm-up, then the schedule."""
    warm = max(1, int(config.warmup * steps))
    if step < warm:
        return (step + 1) / warm
    left = max(0.0, (steps - step) / max(1, steps - warm))
    return {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[config.schedule]
