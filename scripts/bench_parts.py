"""Rows of scripts/bench.py that compare one part with its peer, interleaved in one process, outputs checked equal first."""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
from bench_sizes import sizes
from torch.nn import functional
from transformers import LlamaConfig, MixtralConfig
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from medplib.models.language import states_before
from medplib.models.moe import MoEConfig, MoEMLP, Routing

REPEATS = 5
MIXTURE_REPEATS = 25
"""A mixture moves more memory than a dense MLP, and neighbours on a machine share its memory: single turns are a tenth apart."""


@dataclass(frozen=True)
class Row:
    """One result: `ratio` beside `target` and `stretch`; `lower` says that smaller is better. `details` says what was measured."""

    id: str
    name: str
    ratio: float
    peer: str
    limit: float
    target: float
    stretch: float
    lower: bool
    details: dict[str, float]

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.ratio <= self.target if self.lower else self.ratio >= self.target


def interleaved(runs: dict[str, Callable[[], object]], *, device: str, repeats: int = REPEATS) -> dict[str, list[float]]:
    """Seconds of every run, one after the other in turns, after one turn that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            synchronise(device)
            start = time.perf_counter()
            run()
            synchronise(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronise(device: str) -> None:
    """Wait for the accelerator."""
    if device == "cuda":
        torch.cuda.synchronize()


def halves(device: str) -> AbstractContextManager[object]:
    """On an accelerator weights are bfloat16 and computed with under autocast, as the product does."""
    return torch.autocast(device, dtype=torch.bfloat16) if sizes(device).dtype == torch.bfloat16 else nullcontext()


def product_seconds(device: str) -> float:
    """Best seconds of a matrix product, beside which a row says how steady the machine was."""
    size = 4096 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    return min(interleaved({"product": lambda: a @ b}, device=device, repeats=10)["product"])


def median_ratio(seconds: dict[str, list[float]], above: str, below: str) -> tuple[float, dict[str, float]]:
    """Median over turns of the ratio of neighbours; machines drift less between neighbours than over a row."""
    pairs = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
    return statistics.median(pairs), {
        f"{above}_seconds": min(seconds[above]),
        f"{below}_seconds": min(seconds[below]),
        "spread": max(pairs) - min(pairs),
    }


def run_backward(module: torch.nn.Module, x: torch.Tensor, start: Callable[[], None] = lambda: None) -> Callable[[], None]:
    """One forward and backward of the sum; gradients of parameters are dropped afterwards."""

    def run() -> None:
        start()
        out = module(x)
        out = out if isinstance(out, torch.Tensor) else out[0]
        out.backward(torch.ones_like(out))
        x.grad = None
        for parameter in module.parameters():
            parameter.grad = None

    return run


def dense_mlp(device: str) -> LlamaMLP:
    """One MLP of a Llama."""
    size = sizes(device)
    with torch.device(device):
        return LlamaMLP(LlamaConfig(hidden_size=size.width, intermediate_size=size.hidden)).to(size.dtype)


def mixture(experts: int, device: str, *, skewed: bool = False) -> tuple[MoEMLP, Routing]:
    """Our layer with `experts` experts, one per token; `skewed` sends nine tokens in ten to the first."""
    torch.manual_seed(0)
    names, routing, width = tuple(f"e{i}" for i in range(experts)), Routing(), sizes(device).width
    built = MoEMLP(experts={name: dense_mlp(device) for name in names}, config=MoEConfig(experts=names), width=width, routing=routing)
    if skewed:
        route = built._route

        def most_to_first(rows_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            weight_TK, chosen_TK = route(rows_TD)
            kept = torch.arange(len(rows_TD), device=rows_TD.device) % 10 == 0
            return weight_TK, torch.where(kept[:, None], chosen_TK, 0)

        built._route = most_to_first
    return built.to(device).train(), routing


def moe_rows(device: str) -> list[Row]:
    """Forward and backward of the mixture beside one dense MLP with the same arithmetic per token, and beside the peers' layers."""
    size, dense = sizes(device), dense_mlp(device)
    x = torch.randn(1, size.tokens, size.width, device=device, dtype=size.dtype, requires_grad=True)
    rows = []
    most = (32, size.mixture_32.target, size.mixture_32.stretch, False)
    for experts, target, stretch, skewed in ((2, 1.08, 1.03, False), (2, 1.08, 1.03, True), (8, 1.15, 1.1, False), most):
        layer, routing = mixture(experts, device, skewed=skewed)
        forced = _forced(layer, routing, x)
        assert torch.allclose(forced, next(iter(layer.experts.values()))(x)), "a forced expert is not its MLP"
        start = starting(routing, device)
        runs = {"mixture": run_backward(layer, x, start), "dense": run_backward(dense, x)}
        seconds = interleaved(runs, device=device, repeats=MIXTURE_REPEATS)
        ratio, details = median_ratio(seconds, "mixture", "dense")
        name = f"mixture of {experts} over dense MLP, equal arithmetic{', 90 % to one' if skewed else ''}"
        rows.append(Row(f"a{experts}{'s' if skewed else ''}", name, ratio, "LlamaMLP", 1.0, target, stretch, True, details))
    return rows + [_peer_row(kind, device, x) for kind in ("eager", "grouped_mm")]


def starting(routing: Routing, device: str, tokens: int | None = None) -> Callable[[], None]:
    """What every forward of a mixture begins with: all tokens are real."""
    mask = torch.ones(1, tokens or sizes(device).tokens, dtype=torch.bool, device=device)
    return lambda: routing.start(mask)


def _forced(layer: MoEMLP, routing: Routing, x: torch.Tensor) -> torch.Tensor:
    routing.forced = 0
    try:
        return layer(x)
    finally:
        routing.forced = None


def _peer_row(kind: str, device: str, x: torch.Tensor) -> Row:
    """Transformers' own layer with 32 experts over ours."""
    layer, routing = mixture(32, device)
    size = sizes(device)
    config = MixtralConfig(hidden_size=size.width, intermediate_size=size.hidden, num_local_experts=32, num_experts_per_tok=1)
    config._experts_implementation = kind
    with torch.device(device):
        peer = MixtralSparseMoeBlock(config).to(size.dtype).train()
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    seconds = interleaved({"peer": run_backward(peer, x), "mixture": run_backward(layer, x, starting(routing, device))}, device=device)
    ratio, details = median_ratio(seconds, "peer", "mixture")
    target = 10.0 if kind == "eager" else 1.0
    return Row(
        f"a32_{kind}",
        f"transformers' {kind} experts over ours, 32 experts",
        ratio,
        "MixtralSparseMoeBlock",
        target,
        target,
        target,
        False,
        details,
    )


def label_rows(device: str) -> list[Row]:
    """Cross-entropy at labelled rows over cross-entropy of all rows with labels ignored, 5 % labelled: time and kept bytes."""
    size, share = sizes(device), 0.05
    vocabulary = size.vocabulary
    torch.manual_seed(0)
    head = torch.nn.Linear(size.width, vocabulary, bias=False, device=device, dtype=size.dtype)
    states = torch.randn(size.tokens, size.width, device=device, dtype=size.dtype, requires_grad=True)
    labels = torch.full((size.tokens,), -100, device=device)
    chosen = torch.arange(0, size.tokens, int(1 / share), device=device)
    labels[chosen] = torch.randint(vocabulary, (len(chosen),), device=device)

    def all_rows() -> torch.Tensor:
        return functional.cross_entropy(head(states).float(), labels, ignore_index=-100)

    def labelled() -> torch.Tensor:
        kept = (labels != -100)[:-1]
        return functional.cross_entropy(head(states_before(states[None], kept[None])).float(), labels[:-1][kept])

    assert torch.allclose(all_rows(), labelled(), atol=size.tolerance), "the two losses differ"
    seconds = interleaved({"all": lambda: all_rows().backward(), "labelled": lambda: labelled().backward()}, device=device, repeats=3)
    ratio, details = median_ratio(seconds, "all", "labelled")
    memory = _kept(all_rows, head) / _kept(labelled, head)
    name = "cross-entropy of all rows over labelled rows, 5 % labelled"
    return [
        Row("e", f"{name}: time", ratio, "torch cross-entropy", 1 / share, 10.0, 15.0, False, details),
        Row("e_memory", f"{name}: kept bytes", memory, "torch cross-entropy", 1 / share, 15.0, 20.0, False, {}),
    ]


def _kept(run: Callable[[], torch.Tensor], module: torch.nn.Module) -> int:
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values())
