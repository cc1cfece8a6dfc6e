"""Questions about one image read it once: the answers and scores are those of questions that each read it for themselves."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from conftest import Trained

from medplib.data.dataset import FileCache, load_records
from medplib.data.sources import read_records
from medplib.inference import generate as generation
from medplib.inference.predictor import Predictor
from medplib.inference.prefill import prefill


@pytest.fixture(scope="module")
def setting(trained: Trained):
    """A predictor and its batch: several questions of several lengths about each of three images."""
    by_image = defaultdict(list)
    for name in ("grounding", "vqa_closed", "region"):
        for record in read_records(trained.data / f"{name}.json"):
            by_image[record.images].append(record)
    groups = sorted(by_image.values(), key=len)[-3:]
    records = [record for i in range(3) for record in (group[i] for group in groups if i < len(group))]  # not side by side
    predictor, cache = Predictor(trained.folder("moe")), FileCache(16)
    encoder = predictor.encoder()
    batch = predictor.collator(encoder)([encoder.encode(load_records((record,), cache)) for record in records])
    assert len(records) > 5
    return predictor, batch


def test_the_first_state_is_the_same_and_fewer_tokens_are_read(setting, monkeypatch):
    predictor, batch = setting
    model, read = predictor.model, []
    hidden = model.language.hidden
    monkeypatch.setattr(
        model.language, "hidden", lambda embeds, **options: read.append(embeds.shape[:2].numel()) or hidden(embeds, **options)
    )
    with torch.no_grad():
        images = predictor.encode_images(batch)
        features, leader = images.shown, images.leader
        embeds = model.embed(batch, features)
        apart = prefill(model.language, batch, embeds)
        together = prefill(model.language, batch, embeds, leader)
    torch.testing.assert_close(together.state, apart.state, rtol=1e-4, atol=1e-5)
    assert sum(read[1:]) < 0.7 * read[0]
    assert int(apart.seen.sum()) == int(together.seen.sum())


def test_answers_are_those_without_sharing(setting, monkeypatch):
    predictor, batch = setting
    together = predictor.predict(batch, with_fallback=True)
    monkeypatch.setattr(generation, "prefill", lambda language, batch, embeds, leader: prefill(language, batch, embeds))
    apart = predictor.predict(batch, with_fallback=True)
    for one, other in zip(together, apart, strict=True):
        assert one.text == other.text
        assert one.lm_logit == pytest.approx(other.lm_logit, abs=1e-4)
        assert (one.fallback is None) == (other.fallback is None)
        if one.fallback is not None:
            torch.testing.assert_close(torch.from_numpy(one.fallback), torch.from_numpy(other.fallback), rtol=1e-4, atol=1e-5)
