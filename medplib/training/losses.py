"""Losses of masks and presence, and the named sum that every stage minimises.

Definitions follow MedPLIB (arXiv 2412.09278) and, for the focal and IoU terms, SAM-Med2D; here targets may be soft (area fractions in
[0, 1], what letterboxing a binary mask gives) and padding is left out. Every mask counts the same whatever its size. Pixels (N, S, S) are
gone through once, in float32, for all losses that their sums are enough for. Each loss is a scalar; with N = 0 it is 0 and still connected
to the logits, so that all ranks of a distributed run take part in every backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

DICE_SMOOTHING = 1e-6
IOU_SMOOTHING = 1e-7
FOCAL_ALPHA = 0.25


@dataclass(frozen=True)
class LossWeights:
    """Factor of each loss term; 0 leaves a term out even where it was computed.

    `mask_share` is no factor: in this share of the steps masks are decoded at all. Prompts that are fitted to those of names need the mask
    losses only now and then, and without them a step costs half.
    """

    lm: float = 1.0
    answer: float = 0.0
    decision: float = 0.0
    mask_bce: float = 1.0
    mask_dice: float = 1.0
    mask_focal: float = 0.0
    mask_iou: float = 0.0
    presence: float = 0.0
    distill: float = 0.0
    contrastive: float = 0.0
    router: float = 0.0
    router_z: float = 0.0
    router_task: float = 0.0
    mask_share: float = 1.0

    @property
    def needs_masks(self) -> bool:
        """Whether any term with a weight is computed from decoded masks."""
        return any((self.mask_bce, self.mask_dice, self.mask_focal, self.mask_iou, self.presence))


@dataclass(frozen=True)
class LossTerms:
    """Unweighted scalar losses of one forward; None where a batch gives no such loss.

    `lm` averages over all answer tokens; `answer` first inside each answer and then over answers, so that a "yes" counts as much as a
    description of forty words, beside which its gradient would be lost. `decision` is the cross-entropy of the one token that chooses
    between `<SEG>` and a refusal; `lm` contains it, diluted by all others. `router` balances the experts, `router_z` keeps the
    logits of the router small, `router_task` draws the words of a task to the expert that the mixture's configuration names for it.
    """

    lm: torch.Tensor | None = None
    answer: torch.Tensor | None = None
    decision: torch.Tensor | None = None
    mask_bce: torch.Tensor | None = None
    mask_dice: torch.Tensor | None = None
    mask_focal: torch.Tensor | None = None
    mask_iou: torch.Tensor | None = None
    presence: torch.Tensor | None = None
    distill: torch.Tensor | None = None
    contrastive: torch.Tensor | None = None
    router: torch.Tensor | None = None
    router_z: torch.Tensor | None = None
    router_task: torch.Tensor | None = None

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, value) of the terms that are there, in the order of the fields."""
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None:
                yield field.name, value

    def total(self, weights: LossWeights) -> torch.Tensor:
        """Weighted float32 sum of the terms that are there and have a weight.

        Raises:
            ValueError: no term is left, so that there is nothing to minimise.
        """
        parts = [weight * value.float() for name, value in self.items() if (weight := getattr(weights, name)) != 0]
        if not parts:
            raise ValueError(f"no loss term with a weight; present: {', '.join(name for name, _ in self.items()) or 'none'}")
        return torch.stack(parts).sum()


@dataclass(frozen=True)
class MaskSums:
    """Sums over the valid pixels of each mask, all (N,) float32; the first three are connected to the logits.

    `cross_entropy` of logits and target, `overlap` of probability and target, area `predicted`, area `true`, `valid` pixels.
    """

    cross_entropy: torch.Tensor
    overlap: torch.Tensor
    predicted: torch.Tensor
    true: torch.Tensor
    valid: torch.Tensor


def mask_sums(logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> MaskSums:
    """What `mask_bce`, `mask_dice` and `mask_iou` need to know.

    Args:
        logits: (N, S, S) of the masks.
        target: (N, S, S) area fractions.
        valid: (N, S, S) bool or 0 and 1, false on padding.
    """
    return MaskSums(*_Sums.apply(logits.float(), target.float(), valid.float()))


class _Sums(torch.autograd.Function):
    """The values of MaskSums with their derivative in closed form: written as single operations, going there and back takes twice as long
    and keeps three times as many maps.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, ...]:
        p, g = logits.sigmoid().mul_(valid), target * valid
        ctx.save_for_backward(p, g)
        # Cross-entropy is log(1 + exp(x)) - x g, and that logarithm is max(x, 0) - log(max(p, 1 - p)): no pixel is rounded to infinity
        work = logits.relu().mul_(valid).addcmul_(logits, g, value=-1)
        cross_entropy = _sum(work) - _sum(torch.sub(p, 0.5, out=work).abs_().add_(0.5).log_())
        sums = cross_entropy, _sum(torch.mul(p, g, out=work)), _sum(p), _sum(g), _sum(valid)
        ctx.mark_non_differentiable(*sums[3:])
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *of_sums: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        p, g = ctx.saved_tensors
        of_cross_entropy, of_overlap, of_predicted = (gradient[:, None, None] for gradient in of_sums[:3])
        work = torch.addcmul(p, p, p, value=-1)  # dp / dx, 0 on padding
        gradient = torch.addcmul(of_predicted, g, of_overlap).mul_(work)
        return gradient.add_(torch.sub(p, g, out=work).mul_(of_cross_entropy)), None, None


def _sum(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.sum(dim=(1, 2))


def mask_bce(sums: MaskSums) -> torch.Tensor:
    """Binary cross-entropy, mean over the valid pixels of each mask, then over masks."""
    return _mean(sums.cross_entropy / sums.valid.clamp(min=1))


def mask_dice(sums: MaskSums) -> torch.Tensor:
    """Soft Dice loss 1 - (2 sum(p g) + 1e-6) / (sum p + sum g + 1e-6) per mask, then the mean.

    An empty target gives a loss near 1 with no useful gradient: leave absent targets out.
    """
    return _mean(1 - (2 * sums.overlap + DICE_SMOOTHING) / (sums.predicted + sums.true + DICE_SMOOTHING))


def mask_iou(sums: MaskSums, quality: torch.Tensor, *, detach_masks: bool = True) -> torch.Tensor:
    """Squared error of the predicted quality (N,) against the soft IoU of the predicted mask, mean over masks.

    Args:
        sums: of the masks.
        quality: predicted IoU.
        detach_masks: teach only the quality head. The reference also moves the masks towards the predicted quality (its weight is 0 in
            every published stage); False reproduces that.
    """
    iou_N = (sums.overlap + IOU_SMOOTHING) / (sums.predicted + sums.true - sums.overlap + IOU_SMOOTHING)
    return _mean(((iou_N.detach() if detach_masks else iou_N) - quality.float()).square())


def mask_focal(logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Focal loss, gamma 2, alpha 0.25 on foreground and 0.75 on background, mean over valid pixels, then over masks; all (N, S, S).

    The logarithm is exact where the reference adds 1e-12 inside it; the two differ only for probabilities near 1e-12.
    """
    logits, target = logits.float(), target.float()
    p = logits.sigmoid()
    foreground = FOCAL_ALPHA * target * (1 - p).square() * F.logsigmoid(logits)
    background = (1 - FOCAL_ALPHA) * (1 - target) * p.square() * F.logsigmoid(-logits)
    return _mean(-_sum((foreground + background) * valid) / _sum(valid).clamp(min=1))


def presence_bce(presence_logit: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of presence logits (N,) against present (N,) bool, mean over targets; 0 when N = 0."""
    return _mean(F.binary_cross_entropy_with_logits(presence_logit.float(), present.float(), reduction="none"))


def _mean(loss_N: torch.Tensor) -> torch.Tensor:
    return loss_N.sum() / max(1, loss_N.shape[0])
