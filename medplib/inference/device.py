"""Where a model answers."""

from __future__ import annotations

import torch

from medplib.errors import InputError


def choose_device(name: str, *, local_rank: int = 0) -> str:
    """The device that a person asks for; "auto" = the accelerator where there is one, else the CPU.

    Args:
        name: as in the command line.
        local_rank: which of the processes of this machine asks; with "auto" and "cuda" each takes the next accelerator.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(where="--device", expected="auto, cpu, cuda or cuda:NUMBER", found=name) from None
    here = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= here:
        raise InputError(where="--device", expected=f"a device of this machine ({here} CUDA devices)", found=name, remedy="use cpu")
    if device.type not in ("cpu", "cuda"):
        raise InputError(where="--device", expected="auto, cpu, cuda or cuda:NUMBER", found=name)
    return f"cuda:{local_rank % here}" if name == "cuda" else name
