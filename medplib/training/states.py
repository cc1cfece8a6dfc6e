"""What a resume point holds of a model and its optimiser: whole tensors by the name of their parameter, the same under every strategy.

So a point goes on with another number of ranks, and one written under ZeRO-3 goes on under DDP or in one process.
"""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import Strategy
from torch import nn

from medplib.errors import InputError
from medplib.training.sharded import ShardedStrategy, gathered, split_like
from medplib.training.strategy import ZeroStrategy
from medplib.training.zero import take_shares, whole_shares

WEIGHTS, OPTIMIZER = "weights.", "optimizer."
"""Names in a point: weights.NAME, optimizer.KEY.NAME with the keys of the optimiser (step, exp_avg, exp_avg_sq, momentum)."""


def whole_states(strategy: Strategy, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Trained weights in the precision of the optimiser, buffers, and optimiser states; all ranks take part.

    Args:
        strategy: of the run.
        model: the stage's.
        optimizer: of the run.

    Returns:
        Name in a point -> tensor of its parameter's shape, or () for counts; empty on ranks other than 0 where ranks hold pieces.
    """
    if isinstance(strategy, ZeroStrategy):
        states = whole_shares(strategy, _trained(model))
        weights, moments = states.weights, states.moments
        weights |= _buffers(model) if strategy.is_global_zero else {}
    else:
        weights = _trained(model) | _buffers(model)
        moments = {name: optimizer.state[p] for name, p in _trained(model).items() if p in optimizer.state}
    if isinstance(strategy, ShardedStrategy):
        keep = strategy.is_global_zero
        weights, moments = gathered(weights, keep=keep), {name: gathered(state, keep=keep) for name, state in moments.items()}
    tensors = {f"{WEIGHTS}{name}": tensor for name, tensor in weights.items()}
    return tensors | {f"{OPTIMIZER}{key}.{name}": value for name, state in moments.items() for key, value in state.items()}


def take_states(strategy: Strategy, model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put the tensors of a point where they belong, on every rank its share.

    They are copied, because they are read in place from a file that is removed while the run goes on; so ranks of one machine share the
    memory that they are read into.

    Args:
        strategy: of the run.
        model: the stage's.
        optimizer: of the run, before its first step.
        tensors: what it returned on rank 0, on every rank.

    Raises:
        InputError: the stage changes other tensors.
    """
    trained, buffers = _trained(model), _buffers(model)
    weights = {name.removeprefix(WEIGHTS): tensor for name, tensor in tensors.items() if name.startswith(WEIGHTS)}
    if odd := sorted(weights.keys() ^ (trained | buffers).keys()):
        expected = f"{len(trained) + len(buffers)} tensors that the stage changes"
        raise InputError(where="resume point", expected=expected, found=f"{len(odd)} odd, such as {odd[0]}")
    moments: dict[str, dict[str, torch.Tensor]] = {name: {} for name in trained}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            key, _, parameter = name.removeprefix(OPTIMIZER).partition(".")
            moments[parameter][key] = tensor
    with torch.no_grad():
        for name, buffer in buffers.items():
            buffer.copy_(weights[name])
        if isinstance(strategy, ZeroStrategy):
            take_shares(strategy, trained, weights, moments)
            return
        for name, parameter in trained.items():
            parameter.copy_(split_like(weights[name], parameter))
            if moments[name]:  # none where no step has met the parameter yet
                optimizer.state[parameter] = {key: _beside(parameter, key, value) for key, value in moments[name].items()}


def _beside(parameter: nn.Parameter, key: str, value: torch.Tensor) -> torch.Tensor:
    """A copy on the parameter's device, in its type and split as it is; counts stay float32."""
    if key == "step":
        return value.to(device=parameter.device, dtype=torch.float32, copy=True)
    return split_like(value.to(device=parameter.device, dtype=parameter.dtype, copy=True), parameter)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Running statistics; what is not part of a checkpoint is computed anew."""
    kept = model.state_dict().keys()
    return {name: b for name, b in model.named_buffers() if name in kept}
