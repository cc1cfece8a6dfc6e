"""Files of named tensors, read lazily and written one tensor at a time, so that a checkpoint may be larger than the memory.

Read: a safetensors file, a folder of safetensors shards with or without an index, PyTorch's own files (with weights_only, so that no code
in them runs). Written: safetensors, byte for byte what was given.
"""

from __future__ import annotations

import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from medplib.errors import InputError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_WRAPPERS = ("model", "module", "state_dict")
"""Keys under which training scripts put the weights inside a PyTorch file."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is not read yet: dtype, shape, and how to get it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @staticmethod
    def of(tensor: torch.Tensor) -> StoredTensor:
        """One that is in memory already."""
        return StoredTensor(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def open_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a file or folder by name, none of them read.

    Args:
        path: a .safetensors, .bin, .pt or .pth file, or a folder of them; an index beside the shards is checked when there is one.

    Raises:
        InputError: no such file, a file that is no set of tensors or holds code, a shard that the index names and that is missing, a
            tensor in two shards.
    """
    path = Path(path)
    if path.is_file():
        return _open_file(path)
    found: dict[str, StoredTensor] = {}
    origin: dict[str, Path] = {}
    for shard in tensor_files(path):
        for name, tensor in _open_file(shard).items():
            if name in found:
                raise InputError(where=shard, expected="every tensor in one shard", found=f"{name} in {origin[name].name} as well",
                                 remedy="leave only the shards of one checkpoint in the folder")  # fmt: skip
            found[name], origin[name] = tensor, shard
    _check_index(path, origin)
    return found


def tensor_files(path: str | Path) -> list[Path]:
    """The files that `open_tensors` reads: the file itself, or the shards of a folder and nothing that lies beside them."""
    path = Path(path)
    return [path] if path.is_file() else _indexed(path) or _shards(path)


def _indexed(folder: Path) -> list[Path]:
    """The shards that an index in the folder names, when they are there: other files beside them (a projector alone) are no shards."""
    for index in sorted(folder.glob("*.index.json")) if folder.is_dir() else ():
        shards = sorted({folder / file for file in _weight_map(index).values()})
        if shards and all(shard.exists() for shard in shards):
            return shards
    return []


def _weight_map(index: Path) -> dict[str, str]:
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = list(where.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(where=index, expected="an index with a weight_map", found=f"{type(error).__name__}") from None
    if bad := [file for file in files if not (isinstance(file, str) and Path(file).name == file and Path(file).suffix)]:
        raise InputError(where=index, expected="names of shards beside it", found=repr(bad[0])[:80], remedy="shards must lie in the folder")
    return where


def _shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(where=folder, expected="a checkpoint file or folder", found="no such file")
    for pattern in ("*.safetensors", "*.bin", "*.pth"):
        if shards := sorted(p for p in folder.glob(pattern) if p.name != "training_args.bin"):
            return shards
    raise InputError(where=folder, expected="*.safetensors, *.bin or *.pth in the folder", found="none of them")


def _check_index(folder: Path, origin: dict[str, Path]) -> None:
    """Every tensor that an index names is in the shard that it names; an index for other files than those here is left alone."""
    suffix = next(iter(origin.values())).suffix if origin else ""
    for index in sorted(folder.glob("*.index.json")):
        where = _weight_map(index)
        if {Path(file).suffix for file in where.values()} != {suffix}:
            continue
        for name, file in where.items():
            if name not in origin or origin[name].name != file:
                there = "no such file" if not (folder / file).exists() else f"no tensor {name} in it"
                raise InputError(where=index, expected=f"shard {file}", found=there, remedy="fetch the missing shard, or remove the index")


def _open_file(path: Path) -> dict[str, StoredTensor]:
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
                part = file.get_slice(name)
                if part.get_dtype() not in _DTYPES:
                    raise InputError(where=path, expected=f"tensors of {', '.join(_DTYPES)}", found=f"{name}: {part.get_dtype()}")
                found[name] = StoredTensor(_DTYPES[part.get_dtype()], tuple(part.get_shape()), _reader(path, name))
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(where=path, expected="a safetensors file", found=_first_line(error)) from None
    return found


def _reader(path: Path, name: str) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    return read


def _open_torch(path: Path) -> dict[str, StoredTensor]:
    try:
        with warnings.catch_warnings():  # the reader warns of what it then refuses
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))  # old files cannot be mapped
    except Exception as error:  # whatever a hostile or broken file makes the reader raise, the file is refused
        code = re.search(r"GLOBAL (\S+)", str(error))
        other = "objects that are no tensors" if type(error).__name__ == "UnpicklingError" else _first_line(error)
        raise InputError(where=path, expected="a PyTorch file that holds tensors and no code", found=f"code: {code[1]}" if code else other,
                         remedy="convert it to safetensors where it came from; nothing in it was run") from None  # fmt: skip
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(where=path, expected="named tensors", found=f"{type(state).__name__} of other values")
    for name, tensor in state.items():
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided or tensor.is_meta:
            kind = "without values" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
            raise InputError(where=path, expected=f"dense tensors of {', '.join(_NAMES.values())}", found=f"{name}: {kind}")
    return {str(name): StoredTensor.of(tensor) for name, tensor in state.items()}


def write_safetensors(path: Path, tensors: dict[str, StoredTensor], *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, reading one tensor at a time; `path` is only complete when this returns."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.bytes]}
        offset += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for tensor in tensors.values():
            read = tensor.read().detach().cpu().contiguous()
            file.write(memoryview(read.reshape(-1).view(torch.uint8).numpy()))


def shard_plan(tensors: dict[str, StoredTensor], *, limit: int) -> Sequence[dict[str, StoredTensor]]:
    """The tensors in order, cut into groups of at most `limit` bytes (a larger tensor is a group of its own)."""

    def groups() -> Iterator[dict[str, StoredTensor]]:
        group: dict[str, StoredTensor] = {}
        used = 0
        for name, tensor in tensors.items():
            if group and used + tensor.bytes > limit:
                yield group
                group, used = {}, 0
            group[name] = tensor
            used += tensor.bytes
        yield group

    return list(groups())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
