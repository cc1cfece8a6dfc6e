"""Float32 where halves are computed with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Within the block nothing is cast on `device`; devices that know no autocast (meta) need nothing."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def bfloat16_parts(values: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Float32 values as a sum of bfloat16 ones, the largest first; three hold all 24 bits."""
    parts = []
    for _ in range(count):
        parts.append(values.bfloat16())
        values = values - parts[-1].float()
    return parts


def exact_product(a_TD: torch.Tensor, b_DE: torch.Tensor) -> torch.Tensor:
    """Matrix product of bfloat16 factors, summed and given in float32."""
    if a_TD.is_cuda:
        return torch.mm(a_TD, b_DE, out_dtype=torch.float32)
    return a_TD.float() @ b_DE.float()
