"""Golden tensors of the published MedPLIB code (random weights, tiny sizes; data/*/) and this project's values beside them.

Every function yields rows (quantity, largest difference, tolerance, goal): tests assert them, scripts/parity.py prints them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import nn

from medplib.convert.sizes import moe_sizes
from medplib.inference.generate import generate
from medplib.models.bridge import published_name
from medplib.models.geometry import published_unpad_resize, unpad_resize
from medplib.models.medplib import MedPLIB
from medplib.models.moe import MoEMLP, Routing, expert_capacity, load_balancing_loss
from medplib.training import losses
from medplib.training.losses import LossWeights
from medplib.training.objectives import conversation
from medplib.types import RouterStats
from tests.parity.fixtures import DATA, EXPERTS, Case, Row, case, difference, golden_tensors, model, prompt_case, with_fixture_pixels

WEIGHT_NAMES = {"ce": "lm", "bce": "mask_bce", "dice": "mask_dice", "iou": "mask_iou", "focal": "mask_focal"}


def relative(found: float, expected: float) -> float:
    """|found - expected| / |expected|."""
    return abs(found - expected) / max(abs(expected), 1e-12)


def forward_rows(folder: str, *, top_k: int = 1) -> Iterator[Row]:
    """Vision features to final masks of one fixture."""
    built, case_ = model(folder, top_k), case(folder)
    with_fixture_pixels(built, case_)
    item = folder if top_k == 1 else f"{folder}, top {top_k}"
    expected = golden_tensors(DATA / folder / ("outputs.safetensors" if top_k == 1 else f"top{top_k}_outputs.safetensors"))
    batch, real = case_.batch, case_.expanded
    outputs: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    mlps = [layer.mlp for layer in built.language.decoder.layers]
    hooks = [mlp.register_forward_hook(lambda _m, _i, out: outputs.append(out)) for mlp in mlps]
    routers = [mlp.router for mlp in mlps if isinstance(mlp, MoEMLP)]
    hooks += [router.register_forward_hook(lambda _m, _i, out: logits.append(out)) for router in routers]
    with torch.no_grad():
        features = built.vision(batch.vision_pixels, batch.letterboxes)
        embeds, hidden = built.embed(batch, features), built.hidden(batch, features)
        prompts = built.seg_projector(hidden[batch.target_row, batch.target_position])
        masks = built.ground(batch, prompts)
    for hook in hooks:
        hook.remove()
    at = torch.stack([batch.target_row, batch.target_position], dim=1)
    published = published_unpad_resize(masks.low_res_logits, batch.letterboxes, batch.target_image)
    correct = unpad_resize(masks.mask_logits, batch.letterboxes, batch.target_image)
    everything = torch.ones_like(real)
    compared = {
        "clip_features": (features.flatten(1, 2), everything[:, :1].expand(-1, 16), 1e-4, 2e-5),
        "projected_image_tokens": (built.projector(features).detach(), everything[:, :1].expand(-1, 16), 5e-5, 1e-5),
        "inputs_embeds": (embeds, real, 5e-5, 1e-5),
        "last_hidden_state": (hidden, real, 2e-4, 3e-5),
        "logits": (built.language.logits(hidden).detach(), real, 2e-4, 3e-5),
    }
    for name, (found, where, tolerance, goal) in compared.items():
        if name in expected:
            yield Row(item, name, difference(found[where], expected[name][where]), tolerance, goal)
    if "labels_expanded" in expected:
        yield Row(item, "attention_mask_expanded", difference(real, expected["attention_mask_expanded"].bool()), 0, 0)
        yield Row(item, "labels_expanded", difference(batch.labels, expected["labels_expanded"]), 0, 0)
        yield Row(item, "seg_positions", difference(at, expected["seg_positions"]), 0, 0)
    yield Row(item, "seg_hidden", difference(hidden[at[:, 0], at[:, 1]], expected["seg_hidden"]), 2e-4, 3e-5)
    yield Row(item, "seg_prompt", difference(prompts, expected["seg_prompt"]), 2e-4, 3e-5)
    yield Row(item, "low_res_logits", difference(masks.low_res_logits[:, None], expected["low_res_logits"]), 5e-4, 5e-5)
    yield Row(item, "iou_pred", difference(masks.quality[:, None], expected["iou_pred"]), 5e-4, 5e-5)
    for index, (official, right) in enumerate(zip(published, correct, strict=True)):
        if f"final_official_{index}" in expected:
            yield Row(item, f"final_official_{index}", difference(official, expected[f"final_official_{index}"][0, 0]), 5e-4, 5e-5)
            yield Row(item, f"final_correct_{index}", difference(right, expected[f"final_correct_{index}"][0, 0]), 5e-4, 5e-5)
    stats = built.language.routing.stats()
    if stats is not None:
        yield from _router_rows(item, stats, expected, real, outputs, logits)


def _router_rows(
    item: str,
    stats: RouterStats,
    expected: dict[str, torch.Tensor],
    real: torch.Tensor,
    outputs: list[torch.Tensor],
    logits: list[torch.Tensor],
) -> Iterator[Row]:
    published = expected["router_logits"]
    yield Row(item, "router_logits", difference(torch.stack(logits), published[:, real]), 1e-4, 2e-5)
    probs = expected["router_probs"] if "router_probs" in expected else published.softmax(dim=-1)
    yield Row(item, "router_probs", difference(stats.probs, probs[:, real]), 1e-4, 2e-5)
    if "chosen_expert" in expected:
        yield Row(item, "chosen_expert", difference(stats.chosen[..., 0], expected["chosen_expert"][:, real]), 0, 0)
        yield Row(item, "moe_output", difference(torch.stack(outputs)[:, real], expected["moe_output"][:, real]), 1e-4, 2e-5)
    # The published balancing loss counts padding, which is not routed here, and first choices only: padding is taken from the fixture.
    everywhere = probs.clone()
    everywhere[:, real] = stats.probs
    layers = [RouterStats(layer[None], layer.argmax(dim=-1)[None, :, None], torch.zeros(1)) for layer in everywhere.flatten(1, 2)]
    yield Row(item, "l_aux", difference(torch.stack([load_balancing_loss(one) for one in layers]), expected["l_aux"]), 1e-4, 2e-5)


def loss_rows(folder: str, *, top_k: int = 1) -> Iterator[Row]:
    """Losses and (of one expert per token) gradient norms of the training step in published geometry, and losses in the right one."""

    built, case_ = model(folder, top_k), case(folder)
    with_fixture_pixels(built, case_)
    item = folder if top_k == 1 else f"{folder}, top {top_k}"
    expected = json.loads((DATA / folder / ("losses.json" if top_k == 1 else f"top{top_k}_losses.json")).read_text())
    official, given = expected["official"], expected["weights"]
    weights = LossWeights(**{WEIGHT_NAMES[name]: value for name, value in given.items()})
    built.zero_grad()
    built.requires_grad_(True)
    for frozen in (built.vision, built.grounder.image_encoder, built.grounder.prompt_encoder):
        frozen.requires_grad_(False)
    terms = conversation(built, case_.batch, weights).terms
    terms.total(weights).backward()
    per_mask = expected["per_mask_official_geometry"]
    pairs = {"loss": (terms.total(weights), official["loss"]), "ce": (terms.lm, official["ce_loss"] / given["ce"])}
    pairs |= {
        name: (getattr(terms, WEIGHT_NAMES[name]), sum(per_mask[name]) / len(per_mask[name])) for name in ("bce", "dice", "iou", "focal")
    }
    for name, (found, wanted) in pairs.items():
        yield Row(item, f"loss: {name}", relative(float(found.detach()), wanted), 1e-4, 1e-5)
    yield from _right_geometry(item, built, case_, expected)
    if top_k == 1:
        yield _gradient_row(folder, built)
    built.zero_grad()
    built.requires_grad_(False)


def _gradient_row(folder: str, built: MedPLIB) -> Row:
    norms = json.loads((DATA / folder / "grad_norms.json").read_text())
    worst, compared = 0.0, set()
    for name, parameter in built.named_parameters():
        key = published_name(name, experts=EXPERTS)
        wanted = norms.get(key)
        if wanted is not None and wanted > 1e-4:
            worst = max(worst, relative(0.0 if parameter.grad is None else float(parameter.grad.norm()), wanted))
            compared.add(key)
    needed = {key for key, norm in norms.items() if norm is not None and norm > 1e-4}
    return Row(folder, f"gradient norms ({len(needed)} tensors)", worst if compared == needed else float("inf"), 1e-3, 1e-4)


def _right_geometry(item: str, built: MedPLIB, case_: Case, expected: dict) -> Iterator[Row]:
    """The mask losses where masks are un-padded as they should be."""
    batch, per_mask = case_.batch, expected["per_mask_correct_geometry"]
    with torch.no_grad():
        out = built(batch).grounding
    for index, logits in enumerate(unpad_resize(out.mask_logits, batch.letterboxes, batch.target_image)):
        target = batch.original_masks[index][None]
        one = (logits[None], target, torch.ones_like(target))
        sums = losses.mask_sums(*one)
        found = {
            "bce": losses.mask_bce(sums),
            "dice": losses.mask_dice(sums),
            "focal": losses.mask_focal(*one),
            "iou": losses.mask_iou(sums, out.quality[index : index + 1]),
        }
        for name, value in found.items():
            yield Row(item, f"loss in right geometry: {name}", relative(float(value), per_mask[name][index]), 1e-4, 1e-5)


def generation_rows(kind: str) -> Iterator[Row]:
    """Greedy answers of the "dense" or "moe" fixture: ids, logits and states of every step, and the mask of the first `<SEG>`."""

    built = model(f"llm_{kind}")
    results = json.loads((DATA / "generate" / f"{kind}_results.json").read_text())
    outputs = golden_tensors(DATA / "generate" / f"{kind}_outputs.safetensors")
    for variant, expected in results.items():
        if f"{variant}.step_logits" not in outputs:
            continue
        letter = variant[0]
        inputs = load_file(DATA / "generate" / f"{kind}_{letter}_inputs.safetensors")
        meta = json.loads((DATA / "generate" / f"{kind}_{letter}_meta.json").read_text())
        case_ = prompt_case(inputs, meta, with_region=variant.endswith("used"))
        with_fixture_pixels(built, case_)
        states: list[torch.Tensor] = []

        def decide(step: int, state: torch.Tensor, logprobs: torch.Tensor, live: torch.Tensor, kept: list = states) -> torch.Tensor:
            kept.append(state)
            return logprobs.argmax(dim=-1)

        tokens = meta["tokens"]
        said = generate(
            built, case_.batch, eos_id=tokens["eos"], seg_id=tokens["seg"], max_new_tokens=meta["max_new_tokens"], decide=decide
        )
        item, hidden = f"generate {kind}", torch.cat(states)
        wanted = [token for token in expected["new_ids"] if token != tokens["eos"]]
        yield Row(item, f"{variant}: ids", float(said.ids[0] != wanted), 0, 0)
        yield Row(item, f"{variant}: step_hidden", difference(hidden, outputs[f"{variant}.step_hidden"]), 2e-4, 3e-5)
        with torch.no_grad():
            logits = built.language.logits(hidden)
            yield Row(item, f"{variant}: step_logits", difference(logits, outputs[f"{variant}.step_logits"]), 2e-4, 3e-5)
            if f"{variant}.low_res_logits" not in outputs:
                continue
            prompt = built.seg_projector(said.seg_states[:1])
            masks = built.ground(case_.batch, prompt)
        boxes, first = case_.batch.letterboxes, torch.tensor([0])
        for name, found, tolerance, goal in (
            ("seg_hidden", said.seg_states[:1], 2e-4, 3e-5),
            ("seg_prompt", prompt, 2e-4, 3e-5),
            ("low_res_logits", masks.low_res_logits[:, None], 5e-4, 5e-5),
            ("iou_pred", masks.quality[:, None], 5e-4, 5e-5),
            ("final_official", published_unpad_resize(masks.low_res_logits, boxes, first)[0][None, None], 5e-4, 5e-5),
            ("final_correct", unpad_resize(masks.mask_logits, boxes, first)[0][None, None], 5e-4, 5e-5),
        ):
            yield Row(item, f"{variant}: {name}", difference(found, outputs[f"{variant}.{name}"]), tolerance, goal)


class _Column(nn.Module):
    """An expert that answers with its own unit vector, so that the output of a layer is the table of combine weights."""

    def __init__(self, expert: int) -> None:
        super().__init__()
        self.expert = expert

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.eye(rows.shape[-1])[self.expert].expand_as(rows)


def gating_rows() -> Iterator[Row]:
    """Single calls of the published gate in training: combine weights, kept tokens, choices, capacity, balancing loss."""

    tensors = golden_tensors(DATA / "llm_moe" / "gating_cases.safetensors")
    for meta in json.loads((DATA / "llm_moe" / "gating_cases.json").read_text()):
        number = f"{meta['case']}."
        expected = {name.removeprefix(number): tensors[name] for name in tensors if name.startswith(number)}
        names = tuple(f"expert{index}" for index in range(meta["experts"]))
        section = {"num_experts": meta["experts"], "top_k_experts": meta["top_k"]}
        config = moe_sizes({"moe": section}, where="gate", layers=1, experts=names)
        config = replace(config, capacity_factor=meta["capacity_factor"])
        experts = {name: _Column(index) for index, name in enumerate(names)}
        layer = MoEMLP(experts=experts, config=config, width=meta["experts"], routing=Routing()).train()
        layer.router.weight.data = torch.eye(meta["experts"])
        with mock.patch("torch.rand_like", lambda _, noise=expected["uniform"]: noise):
            combined = layer(expected["logits"][None])[0].detach()
        item, stats = f"gate case {meta['case']}", layer.routing.stats()
        kept = (combined > 0).float()
        yield Row(item, "kept", difference(kept, expected["kept"]), 0, 0)
        yield Row(item, "numbers of kept and dropped", float(int(kept.sum()) != meta["kept"]), 0, 0)
        yield Row(item, "combine weights", difference(combined, expected["combine_per_token_expert"]), 1e-6, 1e-6)
        choices = torch.bincount(stats.chosen[..., 0].flatten(), minlength=meta["experts"])
        yield Row(item, "first choices before dropping", difference(choices, expected["exp_counts"]), 0, 0)
        capacity = expert_capacity(meta["tokens"], meta["top_k"], meta["experts"], meta["capacity_factor"])
        yield Row(item, "capacity", float(capacity != min(meta["capacity"], meta["tokens"])), 0, 0)
        # The published balancing loss looks at first choices only.
        balancing = load_balancing_loss(replace(stats, chosen=stats.chosen[..., :1]))
        yield Row(item, "balancing loss", difference(balancing.detach()[None], expected["l_aux"]), 1e-6, 1e-6)
