"""Whole tensors out of what DeepSpeed's ZeRO has split among ranks, and back (deepspeed 0.19: utils/tensor_fragment.py).

Under ZeRO 1 and 2 each rank optimises a piece of one long tensor per parameter group, under ZeRO 3 a piece of every parameter. Both are
in float32 whatever the model computes in, and both have AdamW's moments beside them, with one count of steps for all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional

from medplib.errors import InputError
from medplib.training.strategy import ZeroStrategy

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class WholeStates:
    """By name of the parameter: its weight, float32, and its optimiser states. On the CPU."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    moments: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)


def whole_shares(strategy: ZeroStrategy, trained: dict[str, nn.Parameter]) -> WholeStates:
    """Put together what the ranks hold, one tensor at a time; all ranks take part, rank 0 gets the result and the others an empty one.

    Args:
        strategy: after at least one step.
        trained: name -> parameter of the model, in one order on all ranks.

    Raises:
        InputError: gradients are gathered that no step has used yet, and would be lost.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    engine, whole = strategy.deepspeed_engine, WholeStates()
    if engine.micro_steps % engine.gradient_accumulation_steps():
        raise InputError(
            where="--resume.every",
            expected="epochs of whole groups of accumulated batches under ZeRO, which gathers gradients across epochs",
            found=f"{engine.gradient_accumulation_steps()} batches a step", remedy="set trainer.accumulate_grad_batches to 1, or use DDP",
        )  # fmt: skip
    step = torch.tensor(float(next(iter(engine.optimizer.optimizer.state.values()))["step"]))
    for name, parameter in trained.items():
        weight = safe_get_full_fp32_param(parameter)
        moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        if not strategy.is_global_zero:
            continue
        whole.weights[name] = weight.detach().cpu().clone()
        whole.moments[name] = {key: value.detach().cpu().clone() for key, value in moments.items()} | {"step": step}
    return whole


def take_shares(
    strategy: ZeroStrategy,
    trained: dict[str, nn.Parameter],
    weights: dict[str, torch.Tensor],
    moments: dict[str, dict[str, torch.Tensor]],
) -> None:
    """Let every rank take its piece of whole tensors, before the first step; all ranks take part.

    Args:
        strategy: whose engine is set up.
        trained: name -> parameter of the model, in one order on all ranks.
        weights: name -> whole weight.
        moments: name -> optimiser states; empty for a parameter that had no gradient yet, which is what zeros are here.

    Raises:
        InputError: parameters have had different numbers of steps, which ZeRO cannot tell apart.
    """
    zero = strategy.deepspeed_engine.optimizer
    step = _one_step(moments)
    for piece in zero.fp32_partitioned_groups_flat if strategy.zero_stage_3 else zero.single_partition_of_fp32_groups:
        states = {key: torch.zeros_like(piece, requires_grad=False) for key in MOMENTS}
        zero.optimizer.state[piece] = states | {"step": torch.tensor(step, dtype=torch.float32, device=piece.device)}
    if not strategy.zero_stage_3:
        zero._lazy_init_hp_params_optimizer_state()  # else done behind the first step
    take = _take_stage_3 if strategy.zero_stage_3 else _take
    for name, parameter in trained.items():
        take(parameter, weights[name].float(), moments[name])
    if not strategy.zero_stage_3:
        zero.update_lp_params()  # the weights that the model computes with


def _take(parameter: Any, weight: torch.Tensor, moments: dict[str, torch.Tensor]) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    safe_set_full_fp32_param(parameter, weight)
    for key in MOMENTS if moments else ():
        safe_set_full_optimizer_state(parameter, moments[key].float(), key)


def _take_stage_3(parameter: Any, weight: torch.Tensor, moments: dict[str, torch.Tensor]) -> None:
    """By rank, because the call for whole tensors refuses those that ranks cannot share evenly."""
    import deepspeed
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    share, rank = parameter.ds_tensor.numel(), distributed.get_rank()

    def mine(whole: torch.Tensor) -> torch.Tensor:
        return functional.pad(whole.float().flatten(), (0, share * distributed.get_world_size() - whole.numel()))[share * rank :][:share]

    safe_set_local_fp32_param(parameter, mine(weight))
    for key in MOMENTS if moments else ():
        safe_set_local_optimizer_state(parameter, mine(moments[key]), key)
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if rank == 0:
            parameter.data.copy_(weight)


def _one_step(moments: dict[str, dict[str, torch.Tensor]]) -> float:
    """How many steps the parameters have had; where no gradient has left anything in the moments the count means nothing yet."""
    counts = {name: float(s["step"]) for name, s in moments.items() if s and any(s[key].any() for key in MOMENTS)}
    if len(set(counts.values())) != 1:
        fewest, most = (chosen(counts, key=counts.get, default="none") for chosen in (min, max))
        raise InputError(
            where="resume point", expected="parameters with one count of steps, to go on under ZeRO",
            found=f"{fewest} with {counts.get(fewest, 0):.0f}, {most} with {counts.get(most, 0):.0f}",
            remedy="go on with the strategy that wrote it",
        )  # fmt: skip
    return next(iter(counts.values()))
