"""Whatever samples a rank holds, its step has the same loss terms and can go backward: else the other ranks would wait for ever."""

from __future__ import annotations

import pytest
import torch
import yaml
from conftest import Trained

from medplib.config import from_dict
from medplib.data.collate import Collator
from medplib.data.dataset import FileCache, load_records
from medplib.data.encode import SampleEncoder
from medplib.data.sources import read_records
from medplib.training.module import StageModule
from medplib.training.stage import StageConfig


def module_of(trained: Trained, stage: str) -> StageModule:
    raw = yaml.safe_load((trained.configs / f"{stage}.yaml").read_text())["model"]["stage"]
    return StageModule(from_dict(StageConfig, raw, where=stage)).train()


def batch_of(trained: Trained, module: StageModule, task: str, chosen: slice):
    encoder, cache = SampleEncoder(tokenizer=module.tokenizer, spec=module.input_spec()), FileCache(8)
    records = read_records(trained.data / f"{task}.json")[chosen]
    return Collator(encoder.text)([encoder.encode(load_records((record,), cache)) for record in records])


@pytest.mark.parametrize("stage", ["dense0", "vision0", "grounder0", "grounding_expert", "moe"])
def test_the_terms_of_a_step_do_not_depend_on_the_samples(trained: Trained, stage: str) -> None:
    module = module_of(trained, stage)
    found, moved = {}, {}
    for name, task, chosen in (
        ("masks", "grounding", slice(0, 4)),
        ("one mask", "grounding", slice(0, 1)),
        ("absent", "grounding", slice(2, 3)),
        ("captions", "caption", slice(0, 3)),
        ("one caption", "caption", slice(0, 1)),
        ("words", "vqa_closed", slice(0, 3)),
    ):
        torch.manual_seed(0)
        terms = module.objective(module.model, batch_of(trained, module, task, chosen), module.stage.losses).terms
        total = terms.total(module.stage.losses)
        module.zero_grad(set_to_none=True)
        total.backward()
        moved[name] = frozenset(n for n, p in module.model.named_parameters() if p.grad is not None)
        assert torch.isfinite(total), name
        found[name] = {term for term, _ in terms.items()}
    assert len({frozenset(terms) for terms in found.values()}) == 1, found
    assert len(set(moved.values())) == 1, {name: max(moved.values(), key=len) - own for name, own in moved.items()}


def test_what_only_keeps_ranks_together_does_not_count_in_validation(trained: Trained) -> None:
    module = module_of(trained, "vision0").eval()
    batch = batch_of(trained, module, "caption", slice(0, 1))
    alone = module.objective(module.model, batch, module.stage.losses).terms
    module.model.run_every_part()
    together = module.objective(module.model, batch, module.stage.losses).terms
    assert alone.contrastive is None
    assert {name for name, _ in together.items()} == {name for name, _ in alone.items()}
