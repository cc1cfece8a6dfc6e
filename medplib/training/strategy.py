"""Lightning strategies: DDP without needless meetings, and DeepSpeed's ZeRO, on accelerators and, for tests, on CPU ranks with gloo."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from medplib.errors import InputError
from medplib.launch import can_meet
from medplib.ranks import summed
from medplib.training.neighbours import DividedWork, NoSharedMemoryError, SharedGradients, take_over
from medplib.training.sharded import ShardedStrategy, gathered

log = logging.getLogger("medplib.training")
T = TypeVar("T")


class SameWeightsStrategy(DDPStrategy):
    """DDP: every rank has the whole model, gradients are averaged; parts that a step leaves out are allowed.

    Buffers are made those of rank 0 before each step only where steps change them (batch norm that trains): elsewhere they stay equal by
    themselves, and one more meeting of all ranks costs a twentieth of a small step. CPU ranks that `--ranks` has started exchange gradients
    through shared memory instead (`neighbours.py`), with the same result.

    Args:
        timeout_minutes: how long a rank waits for the others over sockets or accelerators.
    """

    def __init__(self, timeout_minutes: int = 30) -> None:
        super().__init__(find_unused_parameters=True, gradient_as_bucket_view=True, timeout=timedelta(minutes=timeout_minutes))
        self._shared: SharedGradients | None = None
        self._gathering = False

    @override
    def _setup_model(self, model: nn.Module) -> nn.Module:
        changing, trained = changes_buffers(model), [p for p in model.parameters() if p.requires_grad]
        plain = all(parameter.dtype == torch.float32 for parameter in trained)
        if self.root_device.type == "cpu" and can_meet() and plain and not changing:
            try:
                self._shared = SharedGradients(trained, self.broadcast)
                take_over(model)
                return model
            except NoSharedMemoryError as error:
                log.warning("gradients are exchanged over sockets, which is slower (%s)", error)
        self._ddp_kwargs["broadcast_buffers"] = changing
        return super()._setup_model(model)

    @override
    def setup_optimizers(self, trainer: Trainer) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers if self._shared is not None else ():
            matrices = [p for group in optimizer.param_groups if group.get("muon") for p in group["params"]]
            if matrices:
                try:
                    optimizer.divided = DividedWork(matrices, self.broadcast)
                except NoSharedMemoryError as error:
                    log.warning("every rank does all of Muon's work, which is slower (%s)", error)

    @override
    def post_backward(self, closure_loss: torch.Tensor) -> None:
        super().post_backward(closure_loss)
        if self._shared is not None and not self._gathering:
            self._shared.average()

    @override
    def block_backward_sync(self) -> AbstractContextManager:
        return super().block_backward_sync() if self._shared is None else self._gathered()

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        self._gathering = True
        try:
            yield
        finally:
            self._gathering = False

    @override
    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        if self._shared is None:
            return super().reduce_boolean_decision(decision, all)
        agreed = int(summed(torch.tensor([float(decision)])))
        return agreed == self.world_size if all else agreed > 0

    @override
    def teardown(self) -> None:
        self._shared = None
        super().teardown()


def changes_buffers(model: nn.Module) -> bool:
    """Whether training steps change buffers: there is a batch norm that keeps statistics and whose parameters, if any, are not frozen."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats)
    own = ([parameter.requires_grad for parameter in norm.parameters()] for norm in norms)
    return any(any(trained) or not trained for trained in own)


class _WholeBatches(DeepSpeedPrecision):
    """Leaves batches as they are: models choose the types that they compute in, and a batch is no collection to be rebuilt."""

    @override
    def convert_input(self, data: Any) -> Any:
        return data


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO 1, 2 or 3: optimiser states, then gradients, then weights are split among ranks.

    With `bf16-mixed` the weights that are computed with are bfloat16, those that are optimised float32, and a step runs under autocast,
    because not everything in it is of one type; buffers stay as they are.

    Args:
        stage: 1, 2 or 3.
        offload_optimizer: keep optimiser states in the memory of the host.
        overlap_comm: exchange gradients while others are computed.
        bucket_size: values exchanged at a time.
        timeout_minutes: how long a rank waits for the others.
    """

    def __init__(
        self,
        stage: int = 2,
        offload_optimizer: bool = False,
        overlap_comm: bool = True,
        bucket_size: int = 500_000_000,
        timeout_minutes: int = 30,
    ) -> None:
        if stage not in (1, 2, 3):
            raise InputError(where="trainer.strategy: stage", expected="1, 2 or 3", found=str(stage))
        _prepare_cpu()
        super().__init__(
            stage=stage,
            offload_optimizer=offload_optimizer,
            overlap_comm=overlap_comm and torch.cuda.is_available(),
            reduce_bucket_size=bucket_size,
            allgather_bucket_size=bucket_size,
            timeout=timedelta(minutes=timeout_minutes),
        )

    @override
    def setup_environment(self) -> None:
        if self.parallel_devices and self.parallel_devices[0].type != "cpu":
            super().setup_environment()
        else:  # everything but the demand for CUDA
            super(DeepSpeedStrategy, self).setup_environment()

    @override
    def setup_distributed(self) -> None:
        if self.parallel_devices and self.parallel_devices[0].type != "cpu":
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    @override
    def root_device(self) -> torch.device:
        if self.parallel_devices and self.parallel_devices[0].type == "cpu":
            return torch.device("cpu", self.local_rank)
        return super().root_device

    @override
    def setup(self, trainer: Trainer) -> None:
        precision = self.precision_plugin.precision
        if precision not in ("bf16-mixed", "32-true"):
            raise InputError(where="trainer.precision", expected="bf16-mixed or 32-true under ZeRO", found=precision)
        self.precision_plugin = _WholeBatches(precision)
        super().setup(trainer)

    @override
    def init_deepspeed(self) -> None:
        stage = self.lightning_module.stage
        if stage.optim.muon:
            raise InputError(
                where=f"stage '{stage.name}': optim.muon", expected="no part under ZeRO, which cuts matrices into pieces",
                found=", ".join(stage.optim.muon), remedy="set optim.muon to [] or use DDP",
            )  # fmt: skip
        self.config["gradient_clipping"] = stage.optim.grad_clip
        self.config["zero_force_ds_cpu_optimizer"] = False  # offloaded states are updated by our own optimiser
        model = self.lightning_module.model
        buffers = dict(model.named_buffers())
        super().init_deepspeed()
        if self.precision_plugin.precision == "bf16-mixed":
            model.within = partial(_under_autocast, model.within, self.root_device)  # DeepSpeed turns off what is around it
            for name, buffer in buffers.items():  # it has made them bfloat16: positions and means of pixels need more
                owner, _, last = name.rpartition(".")
                setattr(model.get_submodule(owner), last, buffer.to(self.root_device))


def _under_autocast(within: Callable[[Callable[[], T]], T], device: torch.device, call: Callable[[], T]) -> T:
    with torch.autocast(device.type, dtype=torch.bfloat16):
        return within(call)


class WholeWeights(Callback):
    """Puts the weights together at the end of training, while the ranks can still talk on their accelerators.

    `weights`: name -> tensor on rank 0, trained ones in the precision of the optimiser; empty on other ranks; None where every rank has
    the whole model.
    """

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] | None = None

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Collect; all ranks take part."""
        if isinstance(trainer.strategy, ZeroStrategy):
            self.weights = _collect(trainer.strategy, module.model)
        elif isinstance(trainer.strategy, ShardedStrategy):
            self.weights = gathered(module.model.state_dict(), keep=trainer.is_global_zero)


class SameGradients(Callback):
    """Under ZeRO, refuses a step in which other parameters have gradients than in the first.

    Optimisers leave a parameter alone that has none. ZeRO cannot: stages 1 and 2 take zero for its gradient, so that it goes on by its
    momentum, and stage 3 takes the gradient of the step before once more (deepspeed 0.19). One that never has any stays where it is.
    """

    def __init__(self) -> None:
        self.first: set[str] | None = None
        self.seen: set[str] = set()
        self.step = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Listen to every trained parameter."""
        self.step = trainer.global_step
        if isinstance(trainer.strategy, ZeroStrategy):
            for name, parameter in module.model.named_parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(lambda _, name=name: self.seen.add(name))

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look whenever a step has ended."""
        if not isinstance(trainer.strategy, ZeroStrategy) or trainer.global_step == self.step:
            return
        self.first = self.first or self.seen
        if odd := sorted(self.first ^ self.seen):
            raise InputError(
                where=f"stage '{module.stage.name}', step {trainer.global_step}",
                expected="gradients for the same parameters in every step, which ZeRO needs",
                found=f"{len(odd)} with one in some steps only, such as {odd[0]}",
                remedy="set losses.mask_share to 1 where it is less, or use DDP or FSDP2",
            )
        self.step, self.seen = trainer.global_step, set()


def _collect(strategy: ZeroStrategy, model: nn.Module) -> dict[str, torch.Tensor]:
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    weights: dict[str, torch.Tensor] = {}
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            whole = safe_get_full_fp32_param(parameter)
            if strategy.is_global_zero:
                weights[name] = whole.detach().cpu().clone()
            continue
        with deepspeed.zero.GatheredParameters([parameter], enabled=strategy.zero_stage_3):
            if strategy.is_global_zero:
                weights[name] = parameter.detach().cpu().clone()
    if strategy.is_global_zero:
        weights |= {name: tensor.cpu() for name, tensor in model.state_dict().items() if name not in parameters}
    return weights


def check_strategy(strategy: Strategy) -> None:
    """Only strategies whose weights can be written; else InputError."""
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, ZeroStrategy, ShardedStrategy)):
        known = "auto, ddp, ZeroStrategy or ShardedStrategy (configs/parts/strategy_*.yaml)"
        raise InputError(where="trainer.strategy", expected=known, found=type(strategy).__name__)


def _prepare_cpu() -> None:
    """Without a GPU DeepSpeed must be told so before it is imported, and would compile a library that one machine does not need."""
    if torch.cuda.is_available():
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError:
        raise InputError(where="trainer.strategy", expected="the package deepspeed", found="not installed",
                         remedy="pip install 'medplib[distributed]'") from None  # fmt: skip
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
