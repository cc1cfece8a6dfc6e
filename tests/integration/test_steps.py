"""Decoding over buffers of fixed length says and draws what decoding over a growing cache does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import Trained

from medplib.data.dataset import FileCache, load_records
from medplib.data.sources import read_records
from medplib.inference.predictor import Predictor
from medplib.inference.steps import CapturedSteps, GrowingSteps, has_fixed_shapes, steps_for
from medplib.models.language import LanguageConfig, LanguageModel
from medplib.models.moe import MoEConfig


@pytest.fixture(scope="module")
def setting(trained: Trained):
    """A predictor and two batches of one shape: answers of several lengths, with and without masks."""
    predictor, cache = Predictor(trained.folder("moe"), max_new_tokens=12), FileCache(16)
    encoder = predictor.encoder()
    records = [record for name in ("grounding", "vqa_closed") for record in read_records(trained.data / f"{name}.json")]
    parts = records[:3] + records[-3:], records[3:6] + records[-6:-3]
    return predictor, [predictor.collator(encoder)([encoder.encode(load_records((r,), cache)) for r in part]) for part in parts]


def _answers(predictor: Predictor, batches, steps):
    predictor.steps = steps
    return [answer for batch in batches for answer in predictor.predict(batch, with_fallback=True)]


@pytest.mark.parametrize("expert", [None, "vl", "grounding"])
def test_same_answers(setting, expert):
    predictor, batches = setting
    predictor = predictor if expert is None else predictor.forcing(expert, calibrated=True)
    fixed = _answers(predictor, [*batches, batches[0]], CapturedSteps())
    for one, other in zip(fixed, _answers(predictor, [*batches, batches[0]], GrowingSteps()), strict=True):
        assert one.text == other.text
        assert one.lm_logit == pytest.approx(other.lm_logit, abs=1e-4)
        assert len(one.masks) == len(other.masks)
        for drawn, wanted in zip(one.masks, other.masks, strict=True):
            torch.testing.assert_close(torch.as_tensor(drawn.probability), torch.as_tensor(wanted.probability), rtol=1e-4, atol=1e-5)


def test_a_step_is_kept_for_batches_of_its_shape_only(setting):
    predictor, batches = setting
    steps = CapturedSteps()
    kept = []
    for batch in batches:
        _answers(predictor, [batch], steps)
        kept.append(steps._step)
    assert kept[0] is kept[1]
    _answers(predictor.forcing("vl", calibrated=True), batches[:1], steps)
    assert steps._step is not kept[0], "a forced expert is part of what was captured"


@pytest.mark.parametrize(
    ("change", "fixed"),
    [
        ({}, True),
        ({"moe": MoEConfig(experts=("a", "b"))}, True),
        ({"moe": MoEConfig(experts=tuple("abcde"))}, False),
        ({"hf_config": {"model_type": "mistral", "sliding_window": 8}}, False),
        ({"hf_config": {"model_type": "mistral", "sliding_window": None}}, True),
    ],
)
def test_which_models_have_steps_of_fixed_shape(change, fixed):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    if "hf_config" in change:
        change = {"hf_config": {**change["hf_config"], **sizes, "vocab_size": 32}}
    language = LanguageModel(replace(LanguageConfig(hidden_size=16, layers=1, heads=2, mlp_size=32, vocab_size=32), **change))
    assert has_fixed_shapes(language) is fixed
    assert isinstance(steps_for(language, torch.device("cuda")), CapturedSteps if fixed else GrowingSteps)
    assert isinstance(steps_for(language, torch.device("cpu")), GrowingSteps)
