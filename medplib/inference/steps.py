"""Decoding steps: over a cache that grows, or captured once and replayed where launching kernels takes longer than running them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from medplib.inference.prefill import Prefilled
from medplib.models.language import LanguageModel

_COLUMNS = 128
"""Lengths of fixed buffers are multiples of this, so that batches share a captured step."""

_MOST_EXPERTS = 4
"""With fixed shapes every expert reads its weights at every step."""

Advance = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(inputs (B, 1, D), positions (B, 1), rows (B,) bool that still speak) -> next state (B, D), log-probabilities (B, V)."""


class Steps(Protocol):
    """How words are decoded once the prompt has been read."""

    def begin(self, language: LanguageModel, read: Prefilled, most: int) -> Advance:
        """The step of a batch whose prompts are `read` and whose answers have at most `most` words; `read` is used up."""


def steps_for(language: LanguageModel, device: torch.device) -> Steps:
    """The faster kind of those that a model can do on a device."""
    return CapturedSteps() if device.type == "cuda" and has_fixed_shapes(language) else GrowingSteps()


def has_fixed_shapes(language: LanguageModel) -> bool:
    """Whether a step can be computed with shapes that depend on nothing but the batch: full attention and few experts."""
    layers = StaticCache(config=language.model.config, max_cache_len=1).layers
    return all(type(layer) is StaticLayer for layer in layers) and len(language.expert_names) <= _MOST_EXPERTS


class GrowingSteps:
    """Every step makes the cache one column longer."""

    def begin(self, language: LanguageModel, read: Prefilled, most: int) -> Advance:
        """See `Steps`."""
        seen = read.seen

        def advance(embeds: torch.Tensor, positions: torch.Tensor, live: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal seen
            seen = torch.cat([seen, live[:, None]], dim=1)
            visible = seen[:, None, None, :].clone()
            visible[..., -1] = True  # a finished row still needs one key
            hidden = language.hidden(embeds, mask=visible, positions=positions, token_mask=live[:, None], cache=read.cache)
            state = hidden[:, -1]
            return state, language.logits(state).log_softmax(dim=-1)

        return advance


class CapturedSteps:
    """Steps over buffers of fixed length, captured as a CUDA graph that later batches of the same shape replay.

    On other devices the same step runs without being captured.
    """

    def __init__(self) -> None:
        self._shape: tuple[int, int, int | None] | None = None
        self._step: _FixedStep | None = None

    def begin(self, language: LanguageModel, read: Prefilled, most: int) -> Advance:
        """See `Steps`."""
        rows, length = read.seen.shape
        columns = -(-(length + most) // _COLUMNS) * _COLUMNS
        shape = (rows, columns, language.routing.forced)
        if self._step is None or self._shape != shape:
            self._step = None  # the memory of the one before goes first
            self._step, self._shape = _FixedStep(language, rows, columns, read.seen.device), shape
        self._step.load(read)
        return self._step.advance


class _FixedStep:
    """One step for `rows` rows and at most `columns` words, those of the prompt included."""

    def __init__(self, language: LanguageModel, rows: int, columns: int, device: torch.device) -> None:
        self.language, self.length = language, 0
        self.cache = StaticCache(config=language.model.config, max_cache_len=columns)
        self.mask = torch.zeros(rows, 1, 1, columns, dtype=torch.bool, device=device)
        self.embeds = self.positions = self.state = self.logprobs = torch.empty(0, device=device)
        self.run: Callable[[], None] | None = None

    def load(self, read: Prefilled) -> None:
        """Begin behind a prompt: its cache is copied layer by layer, and given up."""
        self.length = read.seen.shape[1]
        for fixed, grown in zip(self.cache.layers, read.cache.layers, strict=True):
            if not fixed.is_initialized:
                fixed.lazy_initialization(grown.keys, grown.values)
            fixed.keys[:, :, : self.length] = grown.keys
            fixed.values[:, :, : self.length] = grown.values
            fixed.cumulative_length.fill_(self.length)
            grown.keys = grown.values = None
        self.mask.zero_()
        self.mask[:, 0, 0, : self.length] = read.seen

    def advance(self, embeds: torch.Tensor, positions: torch.Tensor, live: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Advance`; rows that have ended are computed with the others, and nobody reads them."""
        self.mask[..., self.length] = True
        if self.run is None:
            self.embeds, self.positions = embeds.clone(), positions.clone()
            self.run = self._captured() if embeds.is_cuda else self._step
        self.embeds.copy_(embeds)
        self.positions.copy_(positions)
        self.run()
        self.length += 1
        return self.state.clone(), self.logprobs.clone()

    def _step(self) -> None:
        routing = self.language.routing
        routing.fixed_shapes = True
        try:
            hidden = self.language.hidden(self.embeds, mask=self.mask, positions=self.positions, cache=self.cache)
        finally:
            routing.fixed_shapes = False
        self.state = hidden[:, -1]
        self.logprobs = self.language.logits(self.state).log_softmax(dim=-1)

    def _captured(self) -> Callable[[], None]:
        """Capture the step. It is run once before, because libraries allocate at their first call; what that run wrote is overwritten."""
        graph, device = torch.cuda.CUDAGraph(), self.embeds.device
        with torch.cuda.device(device), _without_cast_cache():
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._step()
            torch.cuda.current_stream().wait_stream(aside)
            for layer in self.cache.layers:
                layer.cumulative_length.fill_(self.length)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # loaders pin memory in other threads meanwhile
                self._step()
        return graph.replay


@contextmanager
def _without_cast_cache() -> Iterator[None]:
    """Within the block autocast casts weights anew each time: a graph must not hold on to copies that are freed behind it."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
