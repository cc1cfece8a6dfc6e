"""Import of own images and masks: a CSV manifest -> a data folder that training reads (`python -m medplib.prepare import`)."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from medplib.data.prepare.conversations import ConversationOptions, build_conversations
from medplib.data.prepare.decode import Destination, ImageFacts, build_image
from medplib.data.prepare.labels import LabelNames
from medplib.data.prepare.layout import write_json, write_splits
from medplib.data.prepare.manifest import ImageEntry, read_manifest
from medplib.data.prepare.options import ImportOptions
from medplib.data.prepare.splits import assign, check_fractions, compile_patterns, patient_of
from medplib.data.sources.sa_med2d import CLASS_FILE, INDEX_FILE, image_stem
from medplib.errors import InputError
from medplib.paths import new_folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportSummary:
    """What an import made.

    `records` counts by split and task; `empty_masks`, `vanished_instances` and `shrunk_images` count what was left out or changed.
    """

    out: Path
    images: dict[str, int]
    patients: dict[str, int]
    records: dict[str, dict[str, int]]
    names: dict[str, int]
    modalities: dict[str, int]
    masks: int
    empty_masks: int
    vanished_instances: int
    shrunk_images: int

    def lines(self) -> list[str]:
        """The summary as text, for people."""
        lines = [f"{self.out}: {sum(self.images.values())} images, {self.masks} masks, {len(self.names)} names"]
        for split, count in self.images.items():
            tasks = ", ".join(f"{task} {n}" for task, n in self.records[split].items())
            lines.append(f"  {split}: {count} images of {self.patients[split]} patients; records: {tasks}")
        lines.append("  images per modality: " + ", ".join(f"{name} {n}" for name, n in self.modalities.items()))
        lines.append("  images per name: " + ", ".join(f"{name} {n}" for name, n in self.names.items()))
        lines.append(
            f"  left out: {self.empty_masks} empty masks, {self.vanished_instances} instances that shrank to nothing; "
            f"{self.shrunk_images} images made smaller"
        )
        return lines


def import_manifest(manifest: Path, out: Path, *, options: ImportOptions | None = None) -> ImportSummary:
    """Make a data folder of the images and masks that a manifest lists.

    Args:
        manifest: CSV file, see `medplib.data.prepare.manifest.read_manifest`.
        out: new or empty folder; it appears whole or not at all.
        options: options.

    Raises:
        InputError: one line naming the row of the manifest, or the option, that is at fault.
    """
    options = options or ImportOptions()
    _check_options(options)
    entries = read_manifest(Path(manifest), options.root, LabelNames(options.labels, options.strict_labels))
    _check_sources(options, {entry.source for entry in entries})
    patterns = compile_patterns(options.patient_regex, {entry.source for entry in entries})
    patients = [patient_of(entry, patterns) for entry in entries]
    splits = assign(entries, patients, options.splits, {"val": options.val_fraction, "test": options.test_fraction}, options.seed)
    with new_folder(out) as part:
        images = _build_images(entries, patients, splits, part, options)
        words = ConversationOptions(options.paraphrases, options.absent_ratio, options.exhaustive, options.seed)
        counts = write_splits(part, build_conversations(images, part, words))
        summary = _summary(Path(out), images, counts)
        _write_index(images, _class_ids(entries), part)
        _write_origin(Path(manifest), options, summary, part / "import.json")
    for count, what in ((summary.empty_masks, "empty masks left out"), (summary.vanished_instances, "instances lost in shrinking")):
        if count:
            _log.warning("%s: %d %s", out, count, what)
    return summary


def _check_options(options: ImportOptions) -> None:
    check_fractions({"val": options.val_fraction, "test": options.test_fraction})
    limits = {"workers": 1, "paraphrases": 1, "absent_ratio": 0, "max_side": 1}
    for name, least in limits.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(where=f"option {name}", expected=f"at least {least}", found=str(value))


def _check_sources(options: ImportOptions, sources: set[str]) -> None:
    for name in ("exhaustive", "anatomy"):
        unknown = sorted(set(getattr(options, name)) - sources)
        if unknown:
            raise InputError(where=f"option {name}", expected=f"sources among {', '.join(sorted(sources))}", found=", ".join(unknown))


def _class_ids(entries: Sequence[ImageEntry]) -> dict[str, dict[str, int]]:
    """Ids of the names of each source, in alphabetical order."""
    names: dict[str, set[str]] = {}
    for entry in entries:
        names.setdefault(entry.source, set()).update(entry.masks, entry.absent)
    return {source: {name: i for i, name in enumerate(sorted(found))} for source, found in names.items()}


def _stems(entries: Sequence[ImageEntry]) -> list[str]:
    """A file name for every image: its own, or its whole path where two images of a source share a name."""
    short = [image_stem(entry.modality, entry.source, Path(entry.relative).stem) for entry in entries]
    counts = Counter(short)
    long = [image_stem(entry.modality, entry.source, entry.relative) for entry in entries]
    stems = [s if counts[s] == 1 else whole for s, whole in zip(short, long, strict=True)]
    for stem, count in Counter(stem.lower() for stem in stems).items():
        if count > 1:
            where = " and ".join(entry.relative for entry, other in zip(entries, stems, strict=True) if other.lower() == stem)
            raise InputError(
                where=where, expected="image paths that differ in letters and digits", found=f"the same name {stem}", remedy="rename one"
            )
    return stems


def _build_images(
    entries: Sequence[ImageEntry], patients: Sequence[str], splits: Sequence[str], root: Path, options: ImportOptions
) -> list[ImageFacts]:
    """Decode and write all images. Threads, because decoding, resizing and compression all release the interpreter's lock."""
    for folder in ("images", "masks", "masks_merged"):
        (root / folder).mkdir()
    class_ids = _class_ids(entries)
    places = [
        Destination(root, stem, patient, split, entry.anatomy or options.anatomy.get(entry.source, ""), class_ids[entry.source])
        for entry, stem, patient, split in zip(entries, _stems(entries), patients, splits, strict=True)
    ]
    with ThreadPoolExecutor(options.workers) as pool:
        jobs = [
            pool.submit(build_image, entry, to, max_side=options.max_side, on_empty=options.on_empty)
            for entry, to in zip(entries, places, strict=True)
        ]
        try:
            return [job.result() for job in jobs]
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise


def _write_index(images: Sequence[ImageFacts], class_ids: Mapping[str, Mapping[str, int]], root: Path) -> None:
    """The two index files of SA-Med2D."""
    write_json({image.image: [file for s in image.structures for file in s.files] for image in images}, root / INDEX_FILE)
    write_json(class_ids, root / CLASS_FILE)


def _summary(out: Path, images: Sequence[ImageFacts], counts: dict[str, dict[str, int]]) -> ImportSummary:
    return ImportSummary(
        out=out,
        images={split: sum(image.split == split for image in images) for split in counts},
        patients={split: len({image.patient for image in images if image.split == split}) for split in counts},
        records=counts,
        names=dict(sorted(Counter(name for image in images for name in image.present).items())),
        modalities=dict(sorted(Counter(image.modality for image in images).items())),
        masks=sum(len(structure.files) for image in images for structure in image.structures),
        empty_masks=sum(image.dropped for image in images),
        vanished_instances=sum(image.vanished for image in images),
        shrunk_images=sum(image.size != image.original_size for image in images),
    )


def _write_origin(manifest: Path, options: ImportOptions, summary: ImportSummary, file: Path) -> None:
    """What the folder was made from and with, without the paths of the machine that made it."""
    chosen = {key: value.name if isinstance(value, Path) else value for key, value in asdict(options).items()}
    made = {key: value for key, value in asdict(summary).items() if key != "out"}
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    write_json({"manifest": {"name": manifest.name, "sha256": digest}, "options": chosen, "made": made}, file)
