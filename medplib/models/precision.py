"""Which types are computed with: bfloat16 where a device multiplies it itself, float32 where halves would not do."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

_BFLOAT16_OF_CPUS = ("avx512_bf16", "amx_bf16", "bf16")
"""What torch calls the instructions of x86 and Arm."""


def multiplies_bfloat16(device_type: str) -> bool:
    """Whether devices of this type here have instructions for products of bfloat16.

    Matrix products take half as long then as in float32; without, a CPU takes a hundred times as long (docs/experiments.md).
    """
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch 2.8 cannot tell
    return device_type == "cpu" and any(known.get(name, False) for name in _BFLOAT16_OF_CPUS)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Within the block nothing is cast on `device`; devices that know no autocast (meta) need nothing."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def common_length(count: int) -> int:
    """The next of sixteen lengths in every octave: at most a sixteenth more than `count`, and only few different ones."""
    step = max(8, 1 << max(0, count.bit_length() - 5))
    return -(-count // step) * step


def lengthened(rows: torch.Tensor) -> torch.Tensor:
    """Rows (T, ...) with zeros behind them up to a common length, where a length that is new costs much.

    That is in bfloat16 on a CPU: products are compiled for every shape in half a millisecond, and those of the last thousand are kept.
    """
    halves = rows.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if rows.device.type != "cpu" or not halves or not len(rows):
        return rows
    missing = common_length(len(rows)) - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


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
