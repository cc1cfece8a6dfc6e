"""Plans beside what really happens on the CPU at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from medplib.config import from_dict
from medplib.data.datamodule import DataModule
from medplib.plan import make_plan
from medplib.planning.compute import Load, measure_step
from medplib.planning.memory import Weights, rank_memory
from medplib.planning.parameters import count_parameters, empty_model
from medplib.planning.report import plan_text
from medplib.training.module import StageModule
from medplib.training.stage import StageConfig
from medplib.types import Batch

ATTENTION = {  # the counter knows the kernels of accelerators only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v),
}


def prepared(trained, name: str) -> tuple[StageModule, Batch]:
    """A stage of the session with a batch of its training data."""
    raw = yaml.safe_load((trained.configs / f"{name}.yaml").read_text())
    module = StageModule(from_dict(StageConfig, raw["model"]["stage"], where=name))
    data = DataModule(train=tuple(raw["data"]["train"]), batch_size=4)
    data.connect(tokenizer=module.tokenizer, spec=module.input_spec())

    class Rank:
        world_size, global_rank = 1, 0

    data.trainer = Rank()
    return module.train(), next(iter(data.train_dataloader()))


def step(module: StageModule, batch: Batch) -> tuple[float, int]:
    """FLOPs forward and backward and bytes that autograd keeps in a real step."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    torch.manual_seed(0)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = module.objective(module.model, batch, module.stage.losses).terms.total(module.stage.losses)
        total.backward()
    return counter.get_total_flops(), sum(kept.values())


@pytest.mark.parametrize("name", ["vl_expert", "grounding_expert", "moe"])
def test_a_planned_step_is_the_real_one(trained, name):
    module, batch = prepared(trained, name)
    flops, kept = step(module, batch)
    samples, length = batch.input_ids.shape
    answers = int((batch.labels != -100).sum()) // samples
    load = Load(
        samples=samples, text_tokens=length - module.config.image_tokens, answer_tokens=answers, masks=max(1, len(batch.names) // samples)
    )
    model = empty_model(module.stage, module.config, vocab_size=len(module.tokenizer))
    parts = count_parameters(model)
    assert sum(part.total for part in parts) == sum(p.numel() for p in module.model.parameters())
    assert sum(part.trained for part in parts) == sum(p.numel() for p in module.model.parameters() if p.requires_grad)
    works = measure_step(model, module.config, load, dtype=torch.float32, with_masks=module.stage.losses.needs_masks)
    # Ten percent where the plan has every part; words that carry evidence and regions, which it leaves out, weigh only at toy size.
    assert sum(w.forward + w.backward for w in works) == pytest.approx(flops, rel=0.1)
    assert sum(w.saved for w in works) == pytest.approx(kept, rel=0.15)


def test_the_command_says_what_fits_and_what_does_not():
    root = Path(__file__).parents[3] / "configs"
    small = make_plan([root / "stages/stage3_grounding.yaml"], ranks=(1, 8), gpu_gib=24)
    large = make_plan([root / "stages/stage3_grounding.yaml"], ranks=(1,), gpu_gib=80)
    assert [row.fits(24) for row in small.memory if row.ranks == 8 and row.strategy == "ZeRO-3" and row.recomputed] == [True]
    assert not any(row.fits(24) for row in small.memory if not row.recomputed)
    assert "does not fit" in plan_text(small)
    assert "verdict: fits 80 GiB" in plan_text(large)
    assert "dominant arithmetic: language layers" in plan_text(large)


def test_memory_is_split_as_zero_says():
    weights = Weights(total=1000, trained=100, block=50)
    rows = {
        s: rank_memory(weights, [], strategy=s, ranks=4, recomputed=0, frozen_bytes=2, layers=2)
        for s in ("none", "ZeRO-1", "ZeRO-2", "ZeRO-3")
    }
    assert {s: (r.weights, r.gradients, r.optimiser) for s, r in rows.items()} == {
        "none": (2 * 900 + 4 * 100, 400, 800),
        "ZeRO-1": (2000, 200, 300),
        "ZeRO-2": (2000, 50, 300),
        "ZeRO-3": (600, 50, 300),
    }
