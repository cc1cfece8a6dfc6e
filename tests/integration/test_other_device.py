"""Training steps and answers on a device that is not the CPU: nothing is left behind there."""

from __future__ import annotations

import pytest
import torch
from conftest import Trained
from other_device import other_device

from medplib.data.collate import Collator
from medplib.data.dataset import FileCache, load_records
from medplib.data.encode import Loaded, SampleEncoder
from medplib.data.sources import read_records
from medplib.inference.predictor import Predictor
from medplib.lineage import load_checkpoint
from medplib.models.build import input_spec
from medplib.models.load import load_model
from medplib.training.losses import LossWeights
from medplib.training.objectives import OBJECTIVES

EVERYTHING = LossWeights(
    answer=1.0, decision=1.0, presence=0.3, distill=1.0, contrastive=1.0, router=0.1, router_z=0.1, router_task=0.1,
    mask_dice=1.0, mask_focal=1.0, mask_iou=1.0,
)  # fmt: skip


def _loaded(trained: Trained) -> list[Loaded]:
    cache = FileCache(16)
    records = [r for task in ("grounding", "region", "vqa_closed", "caption") for r in read_records(trained.data / f"{task}.json")[:4]]
    return [load_records((record,), cache) for record in records]


def test_mixing_devices_fails() -> None:
    """The pretence can tell."""
    with other_device() as device:
        layer, x = torch.nn.Linear(4, 2).to(device), torch.randn(3, 4)
        assert layer(x.to(device)).device == device
        with pytest.raises(RuntimeError, match="two devices"):
            layer(x)


@pytest.mark.parametrize(
    ("stage", "objective"),
    [
        ("dense0", "dense"),
        ("vision0", "contrastive"),
        ("grounder0", "promptable"),
        ("vl_expert", "conversation"),
        ("grounding_expert", "conversation"),
        ("moe", "conversation"),
    ],
)
def test_a_step_of_training_stays_on_its_device(trained: Trained, stage: str, objective: str) -> None:
    losses = {}
    for elsewhere in (False, True):
        model, tokenizer, config = load_model(load_checkpoint(trained.folder(stage)))
        encoder = SampleEncoder(tokenizer=tokenizer, spec=input_spec(config, with_sam=model.grounder is not None))
        batch = Collator(encoder.text)([encoder.encode(item) for item in _loaded(trained)])
        model.train()
        torch.manual_seed(0)
        if elsewhere:
            with other_device() as device:
                total = OBJECTIVES[objective](model.to(device), batch.to(device), EVERYTHING).terms.total(EVERYTHING)
                total.backward()
        else:
            total = OBJECTIVES[objective](model, batch, EVERYTHING).terms.total(EVERYTHING)
        losses[elsewhere] = float(total)
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


@pytest.mark.parametrize("stage", ["vl_expert", "moe"])
def test_answers_are_the_same_on_another_device(trained: Trained, stage: str) -> None:
    loaded = _loaded(trained)
    here = Predictor(trained.folder(stage), max_new_tokens=12).answer(loaded)
    with other_device() as device:
        there = Predictor(trained.folder(stage), device=str(device), max_new_tokens=12).answer(loaded)
    assert [answer.text for answer in there] == [answer.text for answer in here]
    assert [len(answer.masks) for answer in there] == [len(answer.masks) for answer in here]
