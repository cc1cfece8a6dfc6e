"""`python -m medplib.predict --checkpoint DIR --image FILE --question TEXT --out DIR`: an answer, masks as NIfTI, and overlays."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Literal, TypeVar

from medplib.errors import InputError, run_actions, run_command

T = TypeVar("T")
SMALLEST_TILE = 224
"""Pixels: slices that are smaller are enlarged by whole numbers on the sheet of a volume."""


def predict(
    checkpoint: Path,
    image: Path,
    question: str,
    out: Path,
    axis: str = "axial",
    slices: str | None = None,
    points: list[tuple[float, float]] | tuple[float, float] | None = None,
    box: list[tuple[float, float, float, float]] | tuple[float, float, float, float] | None = None,
    region_mask: list[Path] | Path | None = None,
    window: tuple[float, float] | None = None,
    expert: str | None = None,
    threshold: float = 0.5,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Ask a question about an image or a volume.

    Args:
        checkpoint: folder written by `python -m medplib.fit`.
        image: PNG, JPEG, TIFF, or NIfTI (2-D or a volume, which is asked slice by slice).
        question: in words; `<region></region>` in it stands for a region pointed at.
        out: new folder: answer.json, one <name>.nii.gz per mask on the grid of the input, overlay.png.
        axis: volumes: axial, coronal, sagittal, or a voxel axis 0, 1, 2 of the file.
        slices: volumes: FIRST:LAST, both included; default all.
        points: pixels [[x, y], ...] that together are one region.
        box: a region [x0, y0, x1, y1] in pixels, or several [[...], ...].
        region_mask: mask file of the size of the image, or several [..., ...], one region each.
        window: volumes: lowest and highest intensity shown to the model; default the 0.5 and 99.5 percentile of the volume.
        expert: send every token to this expert.
        threshold: probability above which a pixel belongs to a mask (the published code draws at 0.1).
        device: auto (the accelerator where there is one), cpu, cuda or cuda:NUMBER.
        dtype: bfloat16 halves the memory; for accelerators.
    """
    from medplib.imaging.nifti import read_volume
    from medplib.inference.ask import RegionPrompts
    from medplib.inference.device import choose_device
    from medplib.inference.predictor import Predictor

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not 0 < threshold < 1:
        raise InputError(where="--threshold", expected="a probability between 0 and 1", found=str(threshold))
    device = choose_device(device)
    prompts = RegionPrompts(_several(points, tuple), _several(box, tuple), _several(region_mask, Path))
    volume = None
    if image.name.endswith((".nii", ".nii.gz")):
        found = read_volume(image)
        volume = found if 1 not in found.shape else None
    predictor = Predictor(checkpoint, device=device, expert=expert, dtype=dtype)
    if volume is None:
        _image(predictor, image, question, prompts, out, threshold)
    else:
        plane = volume.plane(int(axis) if axis in ("0", "1", "2") else axis, window=window)
        _volume(predictor, plane, question, prompts, out, _slices(slices, len(plane)), threshold)


def _slices(text: str | None, count: int) -> range:
    if text is None:
        return range(count)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not int(match[1]) <= int(match[2]) < count:
        raise InputError(where="--slices", expected=f"FIRST:LAST within 0 to {count - 1}", found=repr(text))
    return range(int(match[1]), int(match[2]) + 1)


def _image(predictor, path: Path, question: str, prompts, out: Path, threshold: float) -> None:
    from medplib.imaging.image import read_image
    from medplib.imaging.nifti import write_mask_nifti_2d
    from medplib.imaging.overlay import overlay_masks, write_png
    from medplib.inference.ask import ask_image
    from medplib.paths import new_folder

    image = read_image(path)
    prediction = ask_image(predictor, image, question, prompts)
    masks = [(m, m.probability > threshold) for m in prediction.masks]
    with new_folder(out) as folder:
        names = _file_names([m.name for m, _ in masks])
        for name, (_, mask) in zip(names, masks, strict=True):
            write_mask_nifti_2d(mask, image.geometry, folder / name)
        write_png(overlay_masks(image.pixels, [(m.name, mask) for m, mask in masks]), folder / "overlay.png")
        geometry = "that of the input" if image.geometry.affine is not None else "identity (LPS, 1 mm): the input has no geometry"
        answer = {
            "image": path.name,
            "question": question,
            "text": prediction.text,
            "complete": prediction.complete,
            "decisions": list(prediction.decisions),
            "geometry": geometry,
            "masks": [
                {
                    "name": m.name,
                    "file": name,
                    "pixels": int(mask.sum()),
                    "presence": m.presence,
                    "quality": m.quality,
                    "threshold": threshold,
                }
                for name, (m, mask) in zip(names, masks, strict=True)
            ],
            "checkpoint_sha256": predictor.checkpoint.lineage.weights_sha256,
        }
        (folder / "answer.json").write_text(json.dumps(answer, indent=2) + "\n")
    print(prediction.text)
    print(f"wrote {out} (masks: geometry {geometry})")


def _volume(predictor, plane, question: str, prompts, out: Path, slices: range, threshold: float) -> None:
    from medplib.imaging.nifti import write_mask_nifti
    from medplib.imaging.overlay import contact_sheet, overlay_masks, write_png
    from medplib.inference.ask import ask_volume, resized
    from medplib.paths import new_folder

    found = ask_volume(predictor, plane, question, prompts, slices=slices, threshold=threshold)
    volume = plane.volume
    with new_folder(out) as folder:
        names = _file_names(list(found.masks))
        for name, mask in zip(names, found.masks.values(), strict=True):
            write_mask_nifti(mask, volume, folder / name)
        shown = list(slices)[:: max(1, len(slices) // 12)]
        enlarged = max(1, SMALLEST_TILE // max(plane.square_shape))
        tile = (plane.square_shape[0] * enlarged, plane.square_shape[1] * enlarged)
        panels = [
            overlay_masks(resized(plane.image(k), tile), [(n, resized(plane.view(m, k).copy(), tile)) for n, m in found.masks.items()])
            for k in shown
        ]
        write_png(contact_sheet(panels, [f"{plane.name} {k}" for k in shown], 4), folder / "overlay.png")
        voxel_ml = float(abs(volume.zooms[0] * volume.zooms[1] * volume.zooms[2])) / 1000
        answer = {
            "image": volume.path.name,
            "question": question,
            "plane": plane.name,
            "geometry": "affine, shape and codes of the input",
            "masks": [
                {"name": n, "file": f, "voxels": int(m.sum()), "millilitres": round(float(m.sum()) * voxel_ml, 4), "threshold": threshold}
                for f, (n, m) in zip(names, found.masks.items(), strict=True)
            ],
            "slices": [
                {"slice": k, "text": p.text, "decisions": list(p.decisions), "quality": [m.quality for m in p.masks]}
                for k, p in zip(found.slices, found.predictions, strict=True)
            ],
            "checkpoint_sha256": predictor.checkpoint.lineage.weights_sha256,
        }
        (folder / "answer.json").write_text(json.dumps(answer, indent=2) + "\n")
    located = ", ".join(f"{n} ({int(m.sum())} voxels)" for n, m in found.masks.items()) or "nothing located"
    print(f"{len(slices)} {plane.name} slices: {located}")
    print(f"wrote {out} (masks on the grid of the input)")


def _file_names(names: list[str]) -> list[str]:
    """One file name per mask: letters, digits and dashes only, numbered where two would be the same."""
    out: list[str] = []
    for name in names:
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "mask"
        number = sum(1 for o in out if o == f"{stem}.nii.gz" or re.fullmatch(re.escape(stem) + r"-\d+\.nii\.gz", o))
        out.append(f"{stem}.nii.gz" if not number else f"{stem}-{number + 1}.nii.gz")
    return out


def _several(given: list[T] | T | None, kind: type[T]) -> tuple[T, ...]:
    """What was given once or several times, or not at all."""
    return (given,) if isinstance(given, kind) else tuple(given or ())


def main() -> None:
    """Parse the command line."""
    run_actions(predict)


if __name__ == "__main__":
    run_command(main)
