"""PyTorch's fully sharded data parallelism (FSDP2) as a Lightning strategy, and whole tensors out of what it has split, and back.

Every decoder layer of the language model is a group whose weights are gathered when it runs; all else is one group that is gathered for
the whole step. Weights, gradients and optimiser states lie split among ranks as DTensors.
"""

from __future__ import annotations

from datetime import timedelta

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from typing_extensions import override

from medplib.errors import InputError


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks, on accelerators and, for tests, on CPU ranks with gloo.

    Args:
        timeout_minutes: how long a rank waits for the others.
    """

    def __init__(self, timeout_minutes: int = 30) -> None:
        super().__init__(timeout=timedelta(minutes=timeout_minutes))

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @override
    def setup(self, trainer: Trainer) -> None:
        """As the parent's, which would have the module split itself."""
        self.accelerator.setup(trainer)
        stage, model = self.lightning_module.stage, self.lightning_module.model
        if stage.optim.muon:
            raise InputError(
                where=f"stage '{stage.name}': optim.muon", expected="no part under FSDP, which cuts matrices into pieces",
                found=", ".join(stage.optim.muon), remedy="set optim.muon to [] or use DDP",
            )  # fmt: skip
        if stage.frozen_dtype != "float32" or stage.compile:
            raise InputError(
                where=f"stage '{stage.name}'",
                expected="frozen_dtype float32 and compile false under FSDP: weights of one type, gathered by hooks",
                found=f"{stage.frozen_dtype} and {str(stage.compile).lower()}",
                remedy="name configs/parts/strategy_fsdp.yaml last",
            )
        self._split(model)
        self.model_to_device()
        self.barrier()
        self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def _split(self, model: nn.Module) -> None:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = self.device_mesh["data_parallel"]
        for layer in model.language.decoder.layers if model.language is not None else ():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "within")


def gathered(tensors: dict[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    """Whole tensors, wherever their pieces are, on the CPU of ranks that `keep` them; all ranks take part, one tensor at a time."""
    whole = {}
    for name, tensor in tensors.items():
        one = tensor.detach()
        one = one.full_tensor() if isinstance(one, DTensor) else one
        if keep:
            whole[name] = one.cpu().clone()
    return whole


def split_like(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The share of this rank of a whole tensor, split as `like` is; the tensor itself where that is not split."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
