"""What chooses experts: logits in float32, without a float32 copy of every row where the device can do without."""

from __future__ import annotations

import torch
from torch import nn

from medplib.models.precision import bfloat16_parts, exact_product, full_precision


class Router(nn.Linear):
    """Rows (T, D) -> logits of experts (T, E), in float32 whatever the type of rows, weights and autocast."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__(width, experts, bias=False, dtype=torch.float32)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, rows_TD: torch.Tensor) -> torch.Tensor:
        """See the class."""
        with full_precision(rows_TD.device):
            if rows_TD.is_cuda and rows_TD.dtype == torch.bfloat16:
                return _SplitProduct.apply(rows_TD, self.weight.float())
            return nn.functional.linear(rows_TD.float(), self.weight.float())


class _SplitProduct(torch.autograd.Function):
    """bfloat16 rows (T, D) by float32 weights (E, D) -> (T, E) float32, without a float32 copy of the rows.

    Weights are the sum of three bfloat16 numbers, so products are exact and only sums are rounded, in float32. Gradients of rows are as
    exact as bfloat16 can tell.
    """

    @staticmethod
    def forward(ctx, rows_TD: torch.Tensor, weight_ED: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows_TD, weight_ED)
        return exact_product(rows_TD, torch.cat(bfloat16_parts(weight_ED, 3)).t()).unflatten(1, (3, -1)).sum(dim=1)

    @staticmethod
    def backward(ctx, grad_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows_TD, weight_ED = ctx.saved_tensors
        (high_TE, low_TE), (high_ED, low_ED) = bfloat16_parts(grad_TE, 2), bfloat16_parts(weight_ED, 2)
        grad_TD = torch.cat([high_TE, high_TE, low_TE], dim=1) @ torch.cat([high_ED, low_ED, high_ED])
        grad_ED = exact_product(torch.cat([high_TE, low_TE], dim=1).t(), rows_TD).unflatten(0, (2, -1)).sum(dim=0)
        return grad_TD, grad_ED
