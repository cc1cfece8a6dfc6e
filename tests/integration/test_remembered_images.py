"""An evaluation encodes an image once, whatever sets ask about it, and computes only what is looked at; scores stay the same."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from conftest import Trained

from medplib.data.dataset import FileCache, load_records
from medplib.data.sources import read_records
from medplib.evaluation.protocols import STRICT
from medplib.evaluation.runner import RunOptions, evaluate_records
from medplib.inference import encoding
from medplib.inference.encoding import ImageMemory
from medplib.inference.predictor import Predictor
from medplib.types import Record


@pytest.fixture(scope="module")
def records(trained: Trained) -> list[Record]:
    """Two questions each about four images, those of an image side by side."""
    by_image: dict[tuple[Path, ...], list[Record]] = defaultdict(list)
    for name in ("grounding", "vqa_closed"):
        for record in read_records(trained.data / f"{name}.json"):
            by_image[record.images].append(record)
    groups = [group for group in by_image.values() if len(group) > 1][:4]
    assert len(groups) == 4
    return [record for group in groups for record in group[:2]]


def _batch(predictor: Predictor, records: list[Record]):
    encoder, cache = predictor.encoder(), FileCache(16)
    return predictor.collator(encoder)([encoder.encode(load_records((record,), cache)) for record in records])


def _counted(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the vision encoder is asked for."""
    counts, forward = [], predictor.model.vision.forward
    monkeypatch.setattr(predictor.model.vision, "forward", lambda pixels, boxes: counts.append(len(pixels)) or forward(pixels, boxes))
    return counts


def _same(one, other) -> None:
    assert torch.equal(one.shown, other.shown)
    assert torch.equal(one.leader, other.leader)
    for name in ("embedding", "statistics"):
        assert torch.equal(getattr(one.features, name), getattr(other.features, name))
    assert one.features.refined == other.features.refined
    assert all(torch.equal(a, b) for a, b in zip(one.features.skips, other.features.skips, strict=True))


@torch.no_grad()
def test_features_do_not_hang_on_what_is_remembered(trained: Trained, records: list[Record], monkeypatch):
    remembering, plain = (Predictor(trained.folder("moe"), memory=memory) for memory in (ImageMemory(), None))
    counts = _counted(remembering, monkeypatch)
    sets = [records[:4], records[2:6], records, records[:4], [records[0], records[7]]]
    for part in sets:
        found = remembering.encode_images(_batch(remembering, part))
        _same(found, Predictor(trained.folder("moe"), memory=ImageMemory()).encode_images(_batch(plain, part)))
        without = plain.encode_images(_batch(plain, part))
        assert torch.equal(found.leader, without.leader)
        torch.testing.assert_close(found.shown, without.shown, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.features.embedding, without.features.embedding, rtol=1e-5, atol=1e-5)
    # Two images, then a lone new one beside known ones, twice; nothing afterwards
    assert counts == [4, 4, 4]


@torch.no_grad()
@pytest.mark.parametrize("known", [10, 17, 18, 19])
def test_many_images_are_encoded_as_few_are(trained: Trained, records: list[Record], known: int):
    """Kernels may sum in another order from sixteen images on, or for one; what is remembered must not show."""
    plain, remembering = (Predictor(trained.folder("moe"), memory=memory) for memory in (None, ImageMemory()))
    many = _batch(plain, [records[0]] * 20)
    generator = torch.Generator().manual_seed(0)
    for pixels in (many.vision_pixels, many.sam_pixels):
        pixels.copy_(torch.randint(0, 256, pixels.shape, generator=generator))
    few = _batch(plain, [records[0]] * known)
    few.vision_pixels.copy_(many.vision_pixels[:known])
    few.sam_pixels.copy_(many.sam_pixels[:known])
    remembering.encode_images(few)
    _same(remembering.encode_images(many), plain.encode_images(many))


@torch.no_grad()
def test_large_images_are_encoded_one_by_one_on_a_cpu(trained: Trained, records: list[Record], monkeypatch):
    monkeypatch.setattr(encoding, "LARGE", 16)
    predictor = Predictor(trained.folder("moe"), memory=ImageMemory())
    counts = _counted(predictor, monkeypatch)
    predictor.encode_images(_batch(predictor, records[:4]))
    predictor.encode_images(_batch(predictor, records))
    assert counts == [1, 1, 1, 1]


@torch.no_grad()
def test_an_image_alone_in_its_batch_is_not_remembered(trained: Trained, records: list[Record], monkeypatch):
    predictor = Predictor(trained.folder("moe"), memory=ImageMemory())
    counts = _counted(predictor, monkeypatch)
    for _ in range(2):
        predictor.encode_images(_batch(predictor, records[:2]))
    assert counts == [1, 1]


@torch.no_grad()
def test_images_of_single_answers_are_not_remembered(trained: Trained, records: list[Record]):
    predictor, cache = Predictor(trained.folder("moe"), max_new_tokens=2, memory=ImageMemory()), FileCache(16)
    left = predictor.encode_images.memory.left
    predictor.answer([load_records((record,), cache) for record in records])
    assert predictor.encode_images.memory.left == left
    predictor.predict(_batch(predictor, records))
    assert predictor.encode_images.memory.left < left


@torch.no_grad()
def test_models_share_what_equal_parts_made(trained: Trained, records: list[Record], monkeypatch):
    memory = ImageMemory()
    first, twin, other = (Predictor(trained.folder("moe"), memory=memory) for _ in range(3))
    with torch.no_grad():
        next(other.model.vision.parameters()).add_(0.01)
    other = type(other.encode_images)(other.model, other.config, memory)
    first.encode_images(_batch(first, records))
    counts = _counted(twin, monkeypatch)
    twin.encode_images(_batch(twin, records))
    assert counts == []
    wanted = first.encode_images(_batch(first, records)).shown
    assert not torch.equal(other(_batch(first, records)).shown, wanted), "changed weights are other weights"


def test_memory_is_bounded_and_forgets_the_oldest():
    memory = ImageMemory(megabytes=3 * 400 / 1e6)
    row = (torch.zeros(100),)
    for name in (b"a", b"a", b"b", b"c"):
        memory.keep("part", name, row)
    assert memory.known("part", b"a") is not None  # asked for: younger than b
    memory.keep("part", b"d", row)
    assert [name for name in (b"a", b"b", b"c", b"d") if memory.known("part", name) is None] == [b"b"]
    memory.keep("part", b"huge", (torch.zeros(1000),))
    assert memory.known("part", b"huge") is None
    assert memory.known("part", b"d") is not None
    assert memory.left == pytest.approx(0)
    assert memory.known("other part", b"a") is None


def test_first_tokens_have_the_scores_of_whole_answers(trained: Trained, records: list[Record]):
    predictor = Predictor(trained.folder("moe"), max_new_tokens=8)
    asked = [record for record in records if record.meta.task == "grounding"]
    whole, first = (
        evaluate_records(predictor, asked, RunOptions(batch_size=4, progress="", first_token_only=only)) for only in (False, True)
    )
    assert [(a.record, a.lm_logit, a.presence_logit, a.present) for a in first.answers] == [
        (a.record, a.lm_logit, a.presence_logit, a.present) for a in whole.answers
    ]
    assert whole.grounding
    assert first.grounding == []


def test_a_protocol_that_nobody_asks_for_is_not_scored(trained: Trained, records: list[Record]):
    predictor = Predictor(trained.folder("moe"), max_new_tokens=8)
    both, strict = (
        evaluate_records(predictor, records, RunOptions(batch_size=4, progress="", **protocols))
        for protocols in ({}, {"protocols": (STRICT,)})
    )
    assert {score.protocol for score in both.grounding} == {"strict", "upstream"}
    assert strict.grounding == both.of(STRICT)
    assert strict.answers == both.answers
