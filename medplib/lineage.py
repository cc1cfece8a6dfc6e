"""Stage checkpoints that know where they come from: safetensors + JSON + tokenizer, hashed, loaded strictly.

A checkpoint folder holds model.safetensors (plain names, LoRA merged), config.json (how to build and feed the model), tokenizer/ and
lineage.json. Nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from medplib.errors import InputError, OptionParser

if TYPE_CHECKING:  # reading a lineage needs no torch
    import torch

    from medplib.tensorfiles import StoredTensor

WEIGHTS, CONFIG, TOKENIZER, LINEAGE = "model.safetensors", "config.json", "tokenizer", "lineage.json"
_PACKAGES = ("torch", "lightning", "transformers", "peft", "segment-anything", "timm", "monai", "numpy")


@dataclass(frozen=True)
class SourceStamp:
    """One data file that a stage read: its name, SHA-256 and number of records."""

    file: str
    sha256: str
    records: int


@dataclass(frozen=True)
class Lineage:
    """What lineage.json says; `run_sha256` is the hash of the configuration that was run, `precision` and `ranks` are the trainer's.

    `parents` maps a role (base, part:grounder, expert:vl, token_rows) to the parent's lineage with its weight hash. `folder` is only a
    name: a checkpoint must not carry paths of the machine that made it.
    """

    stage: str
    trained: tuple[str, ...]
    steps: int
    weights_sha256: str = ""
    config_sha256: str = ""
    tokenizer_sha256: str = ""
    run_sha256: str = ""
    folder: str = ""
    seed: int = 0
    seconds: float = 0.0
    precision: str = ""
    ranks: int = 1
    sources: tuple[SourceStamp, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    parents: dict[str, Lineage] = field(default_factory=dict)

    @staticmethod
    def from_json(data: dict) -> Lineage:
        """Rebuild from parsed JSON; unknown or missing keys raise TypeError."""
        data = dict(data)
        data["trained"] = tuple(data["trained"])
        data["sources"] = tuple(SourceStamp(**s) for s in data.get("sources", ()))
        data["parents"] = {role: Lineage.from_json(parent) for role, parent in data.get("parents", {}).items()}
        return Lineage(**data)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder; weights are read on demand."""

    folder: Path
    config: dict
    lineage: Lineage

    def keys(self) -> list[str]:
        """Names of its tensors."""
        with safe_open(self.folder / WEIGHTS, framework="numpy") as file:
            return list(file.keys())

    def tensors(self, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, torch.Tensor]:
        """The tensors whose names are `wanted`, on the CPU."""
        with safe_open(self.folder / WEIGHTS, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118 (safe_open is no dict)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(path: Path) -> str:
    """SHA-256 over the names and bytes of the files directly in a folder."""
    digest = hashlib.sha256()
    for file in sorted(p for p in Path(path).iterdir() if p.is_file()):
        digest.update(file.name.encode() + bytes.fromhex(sha256_file(file)))
    return digest.hexdigest()


def save_checkpoint(
    folder: Path,
    *,
    tensors: dict[str, StoredTensor],
    config: dict,
    save_tokenizer: Callable[[Path], object] | None,
    lineage: Lineage,
    also: Callable[[Path], None] | None = None,
) -> Lineage:
    """Write a checkpoint folder, whole or not at all, replacing an older one of the same name; one tensor at a time is in memory.

    Args:
        folder: to write.
        tensors: name -> weight.
        config: how to build the model, as JSON.
        save_tokenizer: writes the tokenizer into the folder it is given; None for parts that need none (a grounder alone).
        lineage: where it comes from; hashes are filled in.
        also: writes what else belongs into the folder.

    Returns:
        The lineage with its hashes filled in.
    """
    from medplib.tensorfiles import write_safetensors

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    build = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build.chmod(0o755)
        write_safetensors(build / WEIGHTS, dict(sorted(tensors.items())))
        (build / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        if save_tokenizer is not None:
            save_tokenizer(build / TOKENIZER)
        if also is not None:
            also(build)
        filled = Lineage(
            **{
                **{f: getattr(lineage, f) for f in lineage.__dataclass_fields__},
                "weights_sha256": sha256_file(build / WEIGHTS),
                "config_sha256": sha256_file(build / CONFIG),
                "tokenizer_sha256": sha256_folder(build / TOKENIZER) if save_tokenizer is not None else "",
                "folder": folder.name,
                "packages": package_versions(),
                "commit": code_commit(),
            }
        )
        (build / LINEAGE).write_text(json.dumps(asdict(filled), indent=1) + "\n")
        old = None
        if folder.exists():
            old = build.with_name(build.name + "-old")
            folder.rename(old)
        build.rename(folder)
        if old is not None:
            shutil.rmtree(old)
        return filled
    finally:
        shutil.rmtree(build, ignore_errors=True)


def load_checkpoint(folder: str | Path, *, stage: str | None = None, role: str = "checkpoint") -> Checkpoint:
    """Open a checkpoint folder and check every hash.

    Args:
        folder: the folder.
        stage: the stage it must come from, or None for any.
        role: what it is wanted for; named in errors.

    Raises:
        InputError: a file is missing, damaged or changed, or the stage is another one.
    """
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG, LINEAGE):
        if not (folder / name).exists():
            raise InputError(where=f"{role} {folder}", expected=f"a checkpoint folder with {name}", found="no such file",
                             remedy="name a folder that `python -m medplib.fit` wrote")  # fmt: skip
    try:
        lineage = Lineage.from_json(json.loads((folder / LINEAGE).read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(where=folder / LINEAGE, expected="the lineage of a stage", found=f"{type(error).__name__}: {error}") from None
    if stage is not None and lineage.stage != stage:
        raise InputError(
            where=f"{role} {folder}", expected=f"a checkpoint of stage '{stage}'", found=f"stage '{lineage.stage}'",
            remedy="check stage.init: a parent or an expert may be swapped",
        )  # fmt: skip
    tokenizer = sha256_folder(folder / TOKENIZER) if (folder / TOKENIZER).is_dir() else ""
    found = {WEIGHTS: sha256_file(folder / WEIGHTS), CONFIG: sha256_file(folder / CONFIG), TOKENIZER: tokenizer}
    wanted = {WEIGHTS: lineage.weights_sha256, CONFIG: lineage.config_sha256, TOKENIZER: lineage.tokenizer_sha256}
    for name, digest in found.items():
        if digest != wanted[name]:
            recorded = f"SHA-256 {wanted[name][:12]} as recorded in {LINEAGE}" if wanted[name] else f"none, as recorded in {LINEAGE}"
            raise InputError(where=folder / name, expected=recorded, found=digest[:12] or "no such folder",
                             remedy="the file was changed or damaged; restore it or train the stage again")  # fmt: skip
    try:
        with safe_open(folder / WEIGHTS, framework="numpy") as file:  # which is there sooner than torch
            file.keys()
    except SafetensorError as error:
        raise InputError(where=folder / WEIGHTS, expected="a safetensors file", found=str(error)) from None
    return Checkpoint(folder, json.loads((folder / CONFIG).read_text()), lineage)


def load_config(folder: Path) -> dict:
    """config.json of a checkpoint folder, without looking at its weights."""
    file = Path(folder) / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(where=file, expected="the configuration of a checkpoint", found=type(error).__name__) from None
    if not isinstance(config, dict) or "model" not in config:
        raise InputError(where=file, expected="a configuration with the section 'model'", found=str(config)[:60])
    return config


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide numbers."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def code_commit() -> str:
    """Git commit of the code, with "+changes" when the tree differs; empty outside a git checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def ancestry(lineage: Lineage, *, role: str = "", depth: int = 0, told: set[str] | None = None) -> list[str]:
    """Lines of an indented tree: role, stage, folder, steps, weight hash, what was trained. Each checkpoint is told in full once.

    Args:
        lineage: of the checkpoint at the root.
        role: what the root is to its child.
        depth: how far to indent.
        told: weight hashes told before.
    """
    told = set() if told is None else told
    own = f"{'  ' * depth}{role + ' <- ' if role else ''}{lineage.stage} ({lineage.folder}) steps {lineage.steps}"
    if lineage.weights_sha256 in told:
        return [f"{own} weights {lineage.weights_sha256[:12]} (see above)"]
    told.add(lineage.weights_sha256)
    how = f" in {lineage.precision}" if lineage.precision else ""
    how += f" on {lineage.ranks} ranks" if lineage.ranks > 1 else ""
    lines = [f"{own}{how} weights {lineage.weights_sha256[:12]} trained {', '.join(lineage.trained)}"]
    for source in lineage.sources:
        lines.append(f"{'  ' * depth}  data {source.file} n {source.records} sha256 {source.sha256[:12]}")
    for name, parent in lineage.parents.items():
        lines += ancestry(parent, role=name, depth=depth + 1, told=told)
    return lines


def _main() -> None:
    import sys

    parser = OptionParser(prog="python -m medplib.lineage", description="Where a checkpoint comes from.")
    parser.add_argument("action", choices=["show"])
    parser.add_argument("folder", help="a checkpoint folder")
    arguments = parser.parse_args()
    sys.stdout.write("\n".join(ancestry(load_checkpoint(arguments.folder).lineage)) + "\n")


if __name__ == "__main__":
    from medplib.errors import run_command

    run_command(_main)
