import math

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss

from medplib.training.losses import LossTerms, LossWeights, mask_bce, mask_dice, mask_focal, mask_iou, mask_sums, presence_bce


def case(seed: int = 0, count: int = 3):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, 6, 5, generator=generator)
    target = (torch.rand(count, 6, 5, generator=generator) > 0.6).float()
    return logits, target, torch.ones(count, 6, 5, dtype=torch.bool)


def with_padding(logits, target, valid):
    """The same masks inside a larger square whose padding is wrong on purpose."""
    wide = torch.nn.functional.pad
    return wide(logits, (2, 1, 3, 0), value=7.0), wide(target, (2, 1, 3, 0), value=0.5), wide(valid, (2, 1, 3, 0), value=False)


LOSSES = {
    "bce": lambda *pixels: mask_bce(mask_sums(*pixels)),
    "dice": lambda *pixels: mask_dice(mask_sums(*pixels)),
    "focal": mask_focal,
    "iou": lambda *pixels: mask_iou(mask_sums(*pixels), torch.tensor([0.1, 0.5, 0.9])[: len(pixels[0])]),
}


def test_dice_agrees_with_monai():
    logits, target, valid = case()
    expected = DiceLoss(sigmoid=True, smooth_nr=1e-6, smooth_dr=1e-6)(logits[:, None], target[:, None])
    torch.testing.assert_close(LOSSES["dice"](logits, target, valid), expected)


def test_focal_agrees_with_monai():
    logits, target, valid = case()
    expected = FocalLoss(gamma=2.0, alpha=0.25, reduction="mean")(logits[:, None], target[:, None])
    torch.testing.assert_close(mask_focal(logits, target, valid), expected)


# name, logit everywhere, target everywhere, expected
TABLE = [
    ("bce", 0.0, 1.0, math.log(2)),
    ("bce", 0.0, 0.5, math.log(2)),
    ("bce", math.log(3), 0.25, -(0.25 * math.log(0.75) + 0.75 * math.log(0.25))),
    ("dice", 0.0, 1.0, 1 - 2 * 0.5 / 1.5),
    ("dice", 0.0, 0.5, 1 - 2 * 0.25 / 1.0),
    ("dice", 60.0, 1.0, 0.0),
    ("dice", 0.0, 0.0, 1.0),
    ("focal", 0.0, 1.0, 0.25 * 0.25 * math.log(2)),
    ("focal", 0.0, 0.0, 0.75 * 0.25 * math.log(2)),
    ("focal", math.log(3), 0.0, 0.75 * 0.75**2 * -math.log(0.25)),
    ("focal", -100.0, 1.0, 0.25 * 100),  # a confident error still has a finite loss
    ("iou", 60.0, 1.0, (1 - 0.1) ** 2),
    ("iou", 0.0, 1.0, (0.5 - 0.1) ** 2),
]


@pytest.mark.parametrize(("name", "logit", "target", "expected"), TABLE)
def test_table(name, logit, target, expected):
    shape = (1, 4, 4)
    found = LOSSES[name](torch.full(shape, logit), torch.full(shape, target), torch.ones(shape, dtype=torch.bool))
    assert found.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_does_not_count(name):
    plain, padded = case(), with_padding(*case())
    torch.testing.assert_close(LOSSES[name](*padded), LOSSES[name](*plain))
    logits = padded[0].clone().requires_grad_()
    if name != "iou":
        LOSSES[name](logits, *padded[1:]).backward()
        assert logits.grad[~padded[2]].abs().max() == 0
        assert logits.grad[padded[2]].abs().min() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_masks_count_the_same_and_none_gives_zero(name):
    logits, target, valid = case()
    if name != "iou":
        each = [LOSSES[name](logits[i : i + 1], target[i : i + 1], valid[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(LOSSES[name](logits, target, valid), torch.stack(each).mean())
    empty = logits[:0].requires_grad_()
    found = LOSSES[name](empty, target[:0], valid[:0])
    assert found.item() == 0
    if name != "iou":
        assert found.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_inputs_are_computed_in_float32(name):
    logits, target, valid = case()
    logits = logits.bfloat16()
    assert LOSSES[name](logits, target, valid).item() == LOSSES[name](logits.float(), target, valid).item()


@pytest.mark.parametrize("detach", [True, False])
def test_iou_teaches_masks_only_when_asked(detach):
    logits, target, valid = case()
    logits.requires_grad_()
    quality = torch.full((3,), 0.5, requires_grad=True)
    mask_iou(mask_sums(logits, target, valid), quality, detach_masks=detach).backward()
    assert quality.grad.abs().min() > 0
    assert (logits.grad is None) == detach


def test_sums_and_their_gradients_agree_with_autograd():
    """In float64, operation by operation, with certain and with saturated logits, soft targets and padding."""
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(5, 9, 7, generator=generator)
    logits[0, 0], logits[1, 1], logits[2, 2] = 120.0, -120.0, 0.0
    target, valid = torch.rand(5, 9, 7, generator=generator), torch.rand(5, 9, 7, generator=generator) > 0.3
    factors = torch.randn(3, 5, generator=generator)

    def plain(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        p, g = x.sigmoid(), target.double()
        pixels = torch.nn.functional.binary_cross_entropy_with_logits(x, g, reduction="none"), p * g, p, g, torch.ones_like(p)
        return tuple((value * valid).sum(dim=(1, 2)) for value in pixels)

    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    sums = mask_sums(ours, target, valid)
    found = (sums.cross_entropy, sums.overlap, sums.predicted, sums.true, sums.valid)
    expected = plain(theirs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-6, atol=2e-6)
    sum((f * s).sum() for f, s in zip(factors, found[:3], strict=True)).backward()
    sum((f.double() * s).sum() for f, s in zip(factors, expected[:3], strict=True)).backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


def test_presence():
    found = presence_bce(torch.tensor([0.0, math.log(3)]), torch.tensor([True, False]))
    assert found.item() == pytest.approx((math.log(2) - math.log(0.25)) / 2)
    assert presence_bce(torch.zeros(0), torch.zeros(0, dtype=torch.bool)).item() == 0


def test_total_and_items():
    terms = LossTerms(lm=torch.tensor(2.0), mask_dice=torch.tensor(0.5), mask_iou=torch.tensor(float("nan")))
    assert [name for name, _ in terms.items()] == ["lm", "mask_dice", "mask_iou"]
    assert terms.total(LossWeights(lm=1.5, mask_dice=4.0, mask_iou=0.0)).item() == 5.0


def test_total_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no loss term with a weight; present: lm"):
        LossTerms(lm=torch.tensor(1.0)).total(LossWeights(lm=0.0))


def test_every_term_has_a_weight():
    from dataclasses import fields

    assert [*(field.name for field in fields(LossTerms)), "mask_share"] == [field.name for field in fields(LossWeights)]
