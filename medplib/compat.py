"""What the libraries underneath need to be told: torchvision, beside a CPU-only torch; the C library, about freed memory.

The torchvision wheels of PyPI are built against CUDA; beside a CPU torch their C extension cannot load, and the import fails because the
operator `torchvision::nms` is then registered as a fake without being defined. Where the extension loads this module changes nothing.
Nothing is imported here before somebody needs it: some commands do without torch, which takes a second.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_LIBRARIES: list[torch.library.Library] = []  # a Library unregisters its operators when it is collected


def _extension_loads() -> bool:
    """Whether torchvision's C extension can be loaded here (or torchvision is not installed, so that nothing is to be done)."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    extension = next(Path(spec.origin).parent.glob("_C*.so"), None) or next(Path(spec.origin).parent.glob("_C*.pyd"), None)
    if extension is None:
        return False
    try:
        torch.ops.load_library(str(extension))
    except OSError:
        return False
    return True


def _nms(boxes_N4: torch.Tensor, scores_N: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression over xyxy boxes; indices kept, best score first (definition of torchvision.ops.nms)."""
    import torch

    kept: list[int] = []
    order = scores_N.argsort(descending=True).tolist()
    area_N = (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])
    for i in order:
        if kept:
            low = torch.maximum(boxes_N4[i, :2], boxes_N4[kept, :2])
            high = torch.minimum(boxes_N4[i, 2:], boxes_N4[kept, 2:])
            overlap = (high - low).clamp(min=0).prod(dim=1)
            if bool((overlap / (area_N[i] + area_N[kept] - overlap) > iou_threshold).any()):
                continue
        kept.append(i)
    return torch.tensor(kept, dtype=torch.int64, device=boxes_N4.device)


def ensure_torchvision() -> None:
    """Define the operators that torchvision's Python code expects, if its extension cannot define them."""
    if _LIBRARIES or _extension_loads():
        return
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", _nms, "CompositeExplicitAutograd")
    library.impl("qnms", _nms, "CompositeExplicitAutograd")
    _LIBRARIES.append(library)


class _BeforeTorchvision:
    """A finder of modules that finds none; asked for torchvision, it sees to its operators first, once."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            ensure_torchvision()
        return None


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let the C library keep up to 256 MiB that were freed, and serve blocks below 32 MiB from them.

    By default it hands blocks of a few megabytes back to the system as soon as they are free. A tensor of that size then costs more for
    fresh pages than for what is computed into it (docs/experiments.md, 2026-11-26). Settings of the environment win; other C libraries
    than glibc are left alone.
    """
    chosen = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    mallopt = None if chosen or os.name != "posix" else getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_TRIM_THRESHOLD, 256 * 2**20)


sys.meta_path.insert(0, _BeforeTorchvision())
keep_freed_memory()
