"""Conversations to tokens: placeholders, labels, deciding states, and that sharing the image prefix changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medplib.data.collate import Collator
from medplib.data.encode import Loaded, SampleEncoder, prefix_positions
from medplib.errors import InputError
from medplib.models.build import ModelConfig, build_model
from medplib.models.language import LanguageConfig
from medplib.models.projector import ProjectorConfig
from medplib.models.vision import VisionConfig
from medplib.tokenizer import train_tokenizer
from medplib.tokens import IGNORE_LABEL, IMAGE_PLACEHOLDER, REGION_PLACEHOLDER
from medplib.types import InputSpec, Meta, Record, Target, Turn

TOKENIZER = train_tokenizer(
    [" USER: ASSISTANT: Segment the liver and spleen. There is no liver in this image. yes no What is <region>"] * 3, 340
)
SPEC = InputSpec(vision_size=32, image_tokens=4, region_grid=4, sam_size=32)


def _loaded(*conversations: tuple[str, str], targets=(), regions: int = 0) -> Loaded:
    image = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    mask = np.zeros((40, 30), bool)
    mask[10:20, 5:15] = True
    records, masks, region_masks = [], [], []
    for i, (question, answer) in enumerate(conversations):
        records.append(
            Record(f"r{i}", (Path("x.png"),), (Turn("human", f"<image>\n{question}"), Turn("gpt", answer)), tuple(targets), meta=Meta())
        )
        masks.append(tuple(None if t.mask is None else mask for t in targets))
        region_masks.append((mask,) * regions)
    return Loaded((image,), tuple(records), tuple(masks), tuple(region_masks))


def _present(name: str) -> Target:
    return Target(name, Path(f"{name}.png"))


@pytest.mark.parametrize(
    ("answer", "targets", "count"),
    [
        ("<SEG>", [_present("liver")], 1),
        ("liver <SEG>, spleen <SEG>.", [_present("liver"), _present("spleen")], 2),
        ("There is no liver in this image.", [Target("liver", None)], 1),
        ("liver <SEG>, no spleen.", [_present("liver"), Target("spleen", None)], 1),  # "no" has decided already
        ("liver <SEG>, spleen not visible.", [_present("liver"), Target("spleen", None)], 2),
        ("spleen not visible, liver <SEG>.", [Target("spleen", None), _present("liver")], 2),
        ("liver not visible, spleen not visible.", [Target("liver", None), Target("spleen", None)], 2),
        ("no liver, spleen not visible, liver <SEG>.", [Target("liver", None), Target("spleen", None), _present("liver")], 1),
        ("Neither can be seen.", [Target("liver", None), Target("spleen", None)], 1),
    ],
)
def test_deciding_states(answer: str, targets: list[Target], count: int) -> None:
    encoder = SampleEncoder(tokenizer=TOKENIZER, spec=SPEC)
    sample = encoder.encode(_loaded(("Segment the liver.", answer), targets=targets))
    assert len(sample.targets) == count
    assert int((sample.input_ids == IMAGE_PLACEHOLDER).sum()) == 4
    for target in sample.targets:
        following = int(sample.labels[target.position + 1])
        assert following != IGNORE_LABEL
        assert (following == encoder.text.seg_id) == target.present
    supervised = sample.labels[sample.labels != IGNORE_LABEL].tolist()
    assert supervised == [*encoder.text.text_ids(f" {answer}".replace(" <SEG>", "<SEG>")), TOKENIZER.eos_token_id]


def test_present_and_absent_are_decided_by_the_same_state() -> None:
    """The state before the first answer token; a token between (a space) would tell what comes."""
    encoder = SampleEncoder(tokenizer=TOKENIZER, spec=SPEC)
    present = encoder.encode(_loaded(("Segment the liver.", "<SEG>"), targets=[_present("liver")]))
    absent = encoder.encode(_loaded(("Segment the liver.", "There is no liver."), targets=[Target("liver", None)]))
    opened = SampleEncoder(tokenizer=TOKENIZER, spec=SPEC, open_ended=True)
    asked = opened.encode(_loaded(("Segment the liver.", "<SEG>"), targets=[_present("liver")]))
    assert present.targets[0].position == absent.targets[0].position == len(asked.input_ids) - 1


def test_answer_with_a_colon_does_not_move_the_labels() -> None:
    """B4: the prompt ends where the answer begins, whatever the answer says."""
    closed = SampleEncoder(tokenizer=TOKENIZER, spec=SPEC).encode(_loaded(("What?", "liver: USER: yes")))
    opened = SampleEncoder(tokenizer=TOKENIZER, spec=SPEC, open_ended=True).encode(_loaded(("What?", "liver: USER: yes")))
    start = int((closed.labels != IGNORE_LABEL).nonzero()[0])
    assert opened.input_ids.tolist() == closed.input_ids[:start].tolist()


def test_positions_restart_behind_the_prefix() -> None:
    assert prefix_positions(np.array([0, 0, 0, 1, 1, 2, 2, 2])).tolist() == [0, 1, 2, 3, 4, 3, 4, 5]


def test_regions_fill_their_slots() -> None:
    sample = SampleEncoder(tokenizer=TOKENIZER, spec=SPEC).encode(_loaded(("What is <region></region>?", "liver"), regions=1))
    assert int((sample.input_ids == REGION_PLACEHOLDER).sum()) == 1
    assert sample.region_masks.shape == (1, 4, 4)
    assert 0 < float(sample.region_masks.sum()) < 16


def test_too_long_is_named() -> None:
    spec = InputSpec(vision_size=32, image_tokens=4, region_grid=4, sam_size=None, max_length=8)
    with pytest.raises(InputError, match=r"record r0.*at most 8 tokens"):
        SampleEncoder(tokenizer=TOKENIZER, spec=spec).encode(_loaded(("Segment the liver.", "yes")))


def test_shared_prefix_and_left_padding_change_no_logit() -> None:
    config = ModelConfig(
        vision=VisionConfig(image_size=32, grid=4, levels=(1, 2), width=16),
        projector=ProjectorConfig(pool=2),
        language=LanguageConfig(hidden_size=32, layers=2, heads=2, mlp_size=64),
    )
    torch.manual_seed(0)
    model = build_model(config, vocab_size=len(TOKENIZER)).eval()
    encoder = SampleEncoder(tokenizer=TOKENIZER, spec=InputSpec(vision_size=32, image_tokens=4, region_grid=4, sam_size=None))
    both = [("Segment the liver.", "yes"), ("What is the spleen in this image?", "no liver")]
    together = _loaded(*both)
    apart = [Loaded(together.images, (r,), ((),), ((),)) for r in together.records]
    with torch.no_grad():
        batch = Collator(encoder.text)([encoder.encode(together)])
        assert batch.unmasked == int((batch.segments < 2).sum()) < batch.segments.shape[1]
        shared = model(batch).label_logits
        single = torch.cat([model(Collator(encoder.text)([encoder.encode(a)])).label_logits for a in apart])
        right = model(Collator(encoder.text)([encoder.encode(a) for a in apart])).label_logits
        padded = Collator(encoder.text, pad_left=True)([encoder.encode(a) for a in apart])
        assert padded.unmasked == 0
        left = model(padded).label_logits
        stepped = Collator(encoder.text, length_step=32)([encoder.encode(a) for a in apart])
        longer = model(stepped).label_logits
    assert stepped.input_ids.shape[1] % 32 == 0
    assert stepped.attention_mask.sum() == padded.attention_mask.sum() < stepped.attention_mask.numel()
    for other in (shared, right, left, longer):
        assert torch.allclose(single, other, atol=1e-5)


@pytest.mark.parametrize("pad_left", [False, True])
def test_lengths_are_multiples_of_the_step(pad_left: bool) -> None:
    encoder = SampleEncoder(tokenizer=TOKENIZER, spec=InputSpec(vision_size=32, image_tokens=4, region_grid=4, sam_size=None))
    samples = [encoder.encode(_loaded(("Segment the liver.", "yes"))), encoder.encode(_loaded(("What is this?", "no liver")))]
    plain, stepped = (Collator(encoder.text, pad_left=pad_left, length_step=step)(samples) for step in (1, 16))
    length = plain.input_ids.shape[1]
    assert length % 16
    assert stepped.input_ids.shape[1] == length + 16 - length % 16
    for name in ("input_ids", "labels", "attention_mask", "segments", "positions"):
        whole = getattr(stepped, name)
        kept, added = (whole[:, -length:], whole[:, :-length]) if pad_left else (whole[:, :length], whole[:, length:])
        assert torch.equal(kept, getattr(plain, name)), name
        assert (added == {"input_ids": TOKENIZER.pad_token_id, "labels": -100}.get(name, 0)).all(), name
    assert torch.equal(stepped.target_position, plain.target_position + (16 - length % 16 if pad_left else 0))
