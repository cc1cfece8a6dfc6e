"""Which files of a data root exist, answered from one listing per folder, so that records by the hundred thousand load in seconds."""

from __future__ import annotations

import os
from pathlib import Path

from medplib.errors import InputError
from medplib.paths import inside


class MissingFileError(InputError):
    """A file that a record names and the data root does not hold."""


class DataRoot:
    """A folder that records name their files in.

    `medplib.paths.inside` follows every link of a path, which costs tens of microseconds; here it is asked once per folder and for
    links, and the plain files of a folder come from its listing. The promise is the same: no path outside the root is ever returned.

    Args:
        root: an existing folder.

    Raises:
        InputError: `root` is no folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).resolve()
        if not self.root.is_dir():
            raise InputError(where=root, expected="the folder that holds the images and masks", found="no such folder")
        self._folders: dict[str, tuple[Path, dict[str, bool]]] = {}
        self._found: dict[str, Path] = {}

    def find(self, relative: object, *, where: str) -> Path:
        """The absolute path of an existing file; a name written without its `.png` is completed.

        Args:
            relative: path as written in the data.
            where: the record to name in the error.

        Raises:
            InputError: not a path, or it leads outside the root.
            MissingFileError: no such file.
        """
        if not isinstance(relative, str) or not relative.strip() or "\0" in relative:
            raise InputError(where=where, expected="a path relative to the data root", found=repr(relative))
        path = self._found.get(relative) or self._locate(relative, where)
        self._found[relative] = path
        return path

    def _locate(self, relative: str, where: str) -> Path:
        """The file of that name or of that name with `.png`."""
        folder, name = os.path.split(relative)
        if folder not in self._folders:
            inside(self.root, relative, where=where)  # first, because its error names the whole path
            path = inside(self.root, folder or ".", where=where)
            self._folders[folder] = (path, _listing(path))
        path, listing = self._folders[folder]
        for candidate in (name, f"{name}.png"):
            if candidate in listing:
                is_link = listing[candidate]
                return inside(self.root, os.path.join(folder, candidate), where=where) if is_link else path / candidate
        inside(self.root, relative, where=where)
        raise MissingFileError(
            where=where,
            expected=f"the file {relative!r} under {self.root}",
            found="nothing there",
            remedy=_missing_remedy(relative),
        )

    def relative(self, path: Path, *, where: str) -> str:
        """`path` as it is written in data files: relative to the root, with forward slashes.

        Raises:
            InputError: the path lies outside the root.
        """
        try:
            return Path(path).relative_to(self.root).as_posix()
        except ValueError:
            raise InputError(where=where, expected=f"a file below {self.root}", found=str(path)) from None


def _missing_remedy(relative: str) -> str:
    """What to do about a missing file."""
    if "masks_merged/" in relative:
        return "unions are not part of the SA-Med2D download: build them with `python -m medplib.prepare merge_masks`"
    return "complete the download, or let `python -m medplib.prepare audit` write a copy without such records"


def _listing(folder: Path) -> dict[str, bool]:
    """Names of the files of a folder and whether each is a link; empty when there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InputError(where=folder, expected="a readable folder", found=error.strerror or str(error)) from error
