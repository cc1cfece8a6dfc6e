"""Arithmetic and activations of one training step, measured on tensors without storage: no weights, no memory, no accelerator.

Every part runs forward and backward on the meta device at its real shapes; PyTorch's own counter adds up matrix products, and a hook adds
up what autograd would keep. Attention counts as one fused kernel (queries, keys, values, result and one number per row are kept).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from medplib.models.build import ModelConfig
from medplib.models.medplib import MedPLIB
from medplib.models.moe import MoEConfig
from medplib.training import losses
from medplib.types import Letterbox


@dataclass(frozen=True)
class Load:
    """What a micro-batch looks like: samples, text tokens per sample, supervised tokens per sample, masks per sample."""

    samples: int
    text_tokens: int = 128
    answer_tokens: int = 32
    masks: int = 1


@dataclass(frozen=True)
class Work:
    """One part of a step. FLOPs count a multiplication and an addition as two; bytes: `saved` are kept until the backward pass, `inputs`
    are those of what is handed in.
    """

    part: str
    forward: float
    backward: float
    saved: int
    inputs: int = 0


class _FusedAttention(torch.autograd.Function):
    """Shapes of a fused attention kernel: what it computes and what it keeps."""

    @staticmethod
    def forward(ctx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        groups = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(groups, dim=1).mT
        out = scores @ value.repeat_interleave(groups, dim=1)
        ctx.groups = groups
        ctx.save_for_backward(query, key, value, out, scores.new_empty(scores.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        wide_key, wide_value = (x.repeat_interleave(ctx.groups, dim=1) for x in (key, value))
        scores = query @ wide_key.mT
        in_scores = gradient @ wide_value.mT
        in_value, in_key = scores.mT @ gradient, in_scores.mT @ query
        heads = (len(key), key.shape[1], ctx.groups, *key.shape[2:])
        return in_scores @ wide_key, in_key.view(heads).sum(2), in_value.view(heads).sum(2)


def _attention(module, query, key, value, attention_mask, **options) -> tuple[torch.Tensor, None]:
    """In the form that transformers calls attention in: (B, heads, L, d) -> (B, L, heads, d)."""
    return _FusedAttention.apply(query, key, value).transpose(1, 2), None


def measure_step(model: MedPLIB, config: ModelConfig, load: Load, *, dtype: torch.dtype, with_masks: bool) -> list[Work]:
    """Work of the parts of one micro-batch, in the order in which they run.

    Args:
        model: on the meta device, with requires_grad set (see `medplib.planning.parameters.empty_model`); its dtype is changed.
        config: its sizes.
        load: the micro-batch.
        dtype: type that the step computes in.
        with_masks: whether masks are decoded.
    """
    model.to(dtype)
    for module in (model.language, model.vision):
        _fuse_attention(module)
    return _Step(model, config, load, dtype).run(with_masks=with_masks)


def _fuse_attention(module: torch.nn.Module | None) -> None:
    from transformers import PreTrainedModel
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("planned", _attention)
    for child in module.modules() if module is not None else ():
        if isinstance(child, PreTrainedModel):
            child.config._attn_implementation = "planned"


class _Step:
    """Runs the parts of a step one after the other; each hands on its result, cut off from the graph, with a gradient if one is needed."""

    def __init__(self, model: MedPLIB, config: ModelConfig, load: Load, dtype: torch.dtype) -> None:
        self.model, self.config, self.load, self.dtype = model, config, load, dtype
        self.own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
        self.done: list[Work] = []

    def run(self, *, with_masks: bool) -> list[Work]:
        model, load, size = self.model, self.load, self.config
        boxes = [Letterbox((512, 400), (size.vision.image_size, size.vision.image_size), (0, 0), size.vision.image_size)] * load.samples
        hidden = None
        if model.language is not None:
            pixels = self._pixels(size.vision.image_size)
            features = self._part("vision encoder", lambda: model.vision(pixels, boxes), model.vision)
            hidden = self._speak(features)
        if model.grounder is not None and with_masks:
            self._draw(hidden)
        return self.done

    def _speak(self, features: torch.Tensor) -> torch.Tensor:
        model, load, config = self.model, self.load, self.config.language
        tokens = self._part("projector", lambda: model.projector(features), model.projector, features)
        ids = torch.zeros(load.samples, load.text_tokens, dtype=torch.int64, device="meta")
        words = self._part("word embeddings", lambda: model.language.embed(ids), model.language.rows or model.language.embeddings)
        embeds = torch.cat([tokens.detach(), words.detach()], dim=1).requires_grad_(tokens.requires_grad or words.requires_grad)
        length = embeds.shape[1]
        mask = torch.ones(load.samples, 1, length, length, dtype=torch.bool, device="meta")
        positions = torch.zeros(load.samples, length, dtype=torch.int64, device="meta")
        routing, routing.forced = model.language.routing, 0 if model.language.expert_names else None
        hidden = self._part(
            "language layers", lambda: model.language.hidden(embeds, mask=mask, positions=positions), model.language.decoder.layers, embeds
        )
        if config.moe is not None:
            self._route(embeds.shape[0] * length, config.moe)
        states = hidden[:, -load.answer_tokens :].flatten(0, 1).detach().requires_grad_(hidden.requires_grad)
        labels = torch.zeros(len(states), dtype=torch.int64, device="meta")
        loss = lambda: functional.cross_entropy(model.language.logits(states), labels)  # noqa: E731
        self._part("language head and loss", loss, model.language.rows or model.language.head, states)
        return hidden

    def _route(self, tokens: int, moe: MoEConfig) -> None:
        """What a mixture adds to the one expert per token that was measured: router, copies of rows, further experts.

        Rows are copied (real tokens, then in the order of the experts) and results kept for the product with their weights.
        """
        decoder = self.model.language.decoder
        layers, width = len(moe.layers or decoder.layers), self.model.language.width
        layer = decoder.layers[moe.layers[0] if moe.layers else 0].mlp
        rows = torch.zeros(tokens, width, dtype=self.dtype, device="meta", requires_grad=True)
        self._part("", lambda: next(iter(layer.experts.values()))(rows), layer, rows)
        expert = self.done.pop()
        copies = tokens * width * (self.dtype.itemsize * (2 + 2 * moe.top_k) + (4 if self.dtype != torch.float32 else 0))
        more = moe.top_k - 1
        router = 2 * tokens * width * len(moe.experts)
        self.done.append(
            Work(
                "routing and further experts",
                layers * (router + more * expert.forward),
                layers * (2 * router + more * expert.backward),
                layers * (copies + more * expert.saved),
            )
        )

    def _draw(self, hidden: torch.Tensor | None) -> None:
        model, load, grounder = self.model, self.load, self.config.grounder
        size = grounder.image_size
        pixels = torch.zeros(load.samples, 3, size, size, dtype=self.dtype, device="meta")
        statistics = torch.zeros(load.samples, 6, dtype=self.dtype, device="meta")
        image = self._part(
            "grounder: image encoder", lambda: model.grounder.image_encoder(pixels, statistics), model.grounder.image_encoder
        )
        count = load.samples * load.masks
        states = torch.zeros(count, grounder.embed_dim, dtype=self.dtype, device="meta")
        if hidden is not None:
            positions = hidden[:, -load.masks :].flatten(0, 1).detach().requires_grad_(hidden.requires_grad)
            states = self._part("SegProjector", lambda: model.seg_projector(positions), model.seg_projector, positions)
        index = torch.zeros(count, dtype=torch.int64, device="meta")
        target = torch.zeros(count, size, size, device="meta")

        def masks() -> torch.Tensor:
            out = model.grounder.decode(image, index, states)
            sums = losses.mask_sums(out.mask_logits, target, torch.ones_like(target, dtype=torch.bool))
            return losses.mask_bce(sums) + losses.mask_dice(sums)

        self._part("grounder: decoder and losses", masks, model.grounder.mask_decoder, states)

    def _pixels(self, size: int) -> torch.Tensor:
        return torch.zeros(self.load.samples, 3, size, size, dtype=torch.uint8, device="meta")

    def _part(self, name: str, run: Callable, module: torch.nn.Module, *inputs: torch.Tensor):
        """Run a part forward and, where a gradient is needed, backward; note its work; return its result without graph."""
        trains = any(p.requires_grad for p in module.parameters()) or any(x.requires_grad for x in inputs)
        saved: dict[int, int] = {}
        given = {x.untyped_storage()._cdata for x in inputs}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.own and storage._cdata not in given:
                saved[storage._cdata] = storage.nbytes()
            self.alive.append(tensor)  # an address must not be used twice while the part runs
            return tensor

        self.alive: list[torch.Tensor] = []
        with torch.set_grad_enabled(trains), FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                result = run()
            forward = counter.get_total_flops()
            tensor = result if isinstance(result, torch.Tensor) else result.embedding
            if trains:
                tensor.backward(torch.ones_like(tensor))
        backward = counter.get_total_flops() - forward
        # The result is the input of the next part, which may keep it: counted here.
        handed = tensor.untyped_storage().nbytes() if trains and tensor.untyped_storage()._cdata not in saved else 0
        self.done.append(Work(name, forward, backward, sum(saved.values()) + handed, sum(x.untyped_storage().nbytes() for x in inputs)))
        if isinstance(result, torch.Tensor):
            return result.detach().requires_grad_(trains)
        return type(result)(result.embedding.detach().requires_grad_(trains), result.skips, result.statistics)
