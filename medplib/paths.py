"""Paths that come from data, and files that must appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medplib.errors import InputError


def inside(root: Path, relative: str, *, where: str | Path) -> Path:
    """Join a path read from data to its root; a path that leaves the root is an InputError.

    Args:
        root: folder that the data file declares as its root.
        relative: path as written in the data; must be relative and stay below `root` after symlinks are resolved.
        where: the file or record to name in the error.
    """
    root = Path(root).resolve()
    path = (root / relative).resolve()
    if Path(relative).is_absolute() or not path.is_relative_to(root):
        raise InputError(
            where=where,
            expected="a path inside the data root",
            found=repr(relative),
            remedy="write it relative to the root, without '..' or links that lead outside",
        )
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is moved there, on failure nothing is left behind.

    The temporary name keeps the suffixes of `path`, because writers choose the format by them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", suffix="".join(path.suffixes[-2:]), dir=path.parent)
    os.close(handle)
    os.chmod(name, 0o644)
    temporary = Path(name)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`; it becomes `out` on success and disappears on failure.

    Raises:
        InputError: `out` is there already and is not an empty folder.
    """
    out = Path(out).absolute()
    out = out.parent.resolve() / out.name  # readers resolve links too, so paths compare equal
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(where=out, expected="a new or empty folder", found="one with content", remedy="choose another or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".part-{out.name}-", dir=out.parent))
    try:
        part.chmod(0o755)
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
