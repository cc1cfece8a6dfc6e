"""A second device for machines that have none: tensors say that they are on it, and are kept in memory.

What is computed there is computed by the CPU; what mixes tensors of both devices fails as it would with an accelerator. It calls itself
`meta`, because autograd needs no more of that device than its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_ACROSS = {_aten._to_copy.default, _aten.copy_.default, _aten._local_scalar_dense.default}
"""Operations that may take tensors of two devices."""
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default}
"""Operations whose first tensor may be indexed from the CPU."""


class There(torch.Tensor):
    """A tensor on the other device; `kept` holds its values."""

    @staticmethod
    def __new__(cls, kept: torch.Tensor) -> There:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            kept.shape,
            strides=kept.stride(),
            storage_offset=kept.storage_offset(),
            dtype=kept.dtype,
            device=DEVICE,
            requires_grad=kept.requires_grad,
        )

    def __init__(self, kept: torch.Tensor) -> None:
        self.kept = kept

    def __tensor_flatten__(self):
        return ["kept"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, meta, size, stride) -> There:
        return There(inner["kept"])

    def __repr__(self, **options) -> str:
        return f"There({self.kept})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.tolist:
            return args[0].kept.tolist()
        if func is torch.Tensor.new_tensor:  # made in C++, where the modes below see nothing; so is the index of a list
            return There(torch.tensor(args[1], dtype=args[0].dtype))
        if func is torch.Tensor.__getitem__:
            several = isinstance(args[1], tuple)
            indices = [torch.tensor(index) if isinstance(index, list) else index for index in (args[1] if several else args[1:])]
            args = (args[0], tuple(indices) if several else indices[0])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    flat, spec = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    there = any(isinstance(x, There) for x in tensors)
    here = [x for x in tensors if not isinstance(x, There) and x.dim() > 0]
    if there and here and func not in _ACROSS and not (func in _INDEXING and isinstance(args[0], There)):
        raise RuntimeError(f"{func}: tensors of two devices, {[tuple(x.shape) for x in here]} on the CPU")
    if unseen := [x for x in tensors if not isinstance(x, There) and x.device == DEVICE]:
        raise RuntimeError(f"{func}: {len(unseen)} tensors came to the other device in a way that the pretence does not know")
    wanted = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    args, kwargs = tree_unflatten([x.kept if isinstance(x, There) else x for x in flat], spec)
    if wanted is not None:
        kwargs["device"] = torch.device("cpu")
    with _disable_current_modes():
        out = func(*args, **kwargs)
    writes = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
    if func is _aten._local_scalar_dense.default:
        return out
    if writes and not isinstance(out, tuple | list):
        return flat[0]
    to_there = wanted == DEVICE if wanted is not None else there
    return tree_map(lambda x: There(x) if isinstance(x, torch.Tensor) else x, out) if to_there else out


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """`torch.tensor` and `as_tensor` make theirs in C++, too."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        numbers = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        if numbers and kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE:
            return There(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Within the block the device exists."""
    with _FromNumbers(), _Operations():
        yield DEVICE
