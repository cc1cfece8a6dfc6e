"""A handful of images with two shapes each, in the official layout: what tests train on."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

NAMES = ("bright disc", "dark square", "grey ring")


def _scene(rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    height, width = int(rng.integers(48, 64)), int(rng.integers(48, 72))
    image = rng.normal(100, 8, (height, width)).astype(np.float32)
    chosen = list(rng.permutation(NAMES)[:2])
    masks: dict[str, np.ndarray] = {}
    for column, name in enumerate(chosen):
        x = int(width * (0.28 + 0.44 * column) + rng.integers(-3, 4))
        y, r = int(rng.integers(16, height - 16)), int(rng.integers(6, 10))
        mask = np.zeros((height, width), np.uint8)
        if name == "dark square":
            mask[y - r : y + r, x - r : x + r] = 1
            image[mask > 0] = 20
        else:
            cv2.circle(mask, (x, y), r, 1, -1 if name == "bright disc" else 3)
            image[mask > 0] = 230 if name == "bright disc" else 160
        masks[name] = mask
    return np.clip(image, 0, 255).astype(np.uint8), masks


def _record(number: int, stem: str, question: str, answer: str, task: str, present: list[str], targets: list[dict]) -> dict:
    meta = {"source": "toy", "modality": "CT", "anatomy": "", "task": task, "patient": stem, "present": present, "targets": targets}
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": f"{stem}-{number}", "image": f"images/{stem}.png", "conversations": turns, "meta": meta}


def write_toy(root: Path, *, images: int = 12, seed: int = 0) -> dict[str, Path]:
    """Write `images` cases under `root`; returns task -> JSON file."""
    rng = np.random.default_rng(seed)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    out: dict[str, list[dict]] = {"grounding": [], "region": [], "vqa_closed": [], "caption": []}
    for case in range(images):
        pixels, masks = _scene(rng)
        stem = f"ct_00--toy--case_{case:04d}--2d_none"
        cv2.imwrite(str(root / "images" / f"{stem}.png"), pixels)
        present = list(masks)
        for index, (name, mask) in enumerate(masks.items()):
            path = f"masks/{stem}--{NAMES.index(name):04d}_000.png"
            cv2.imwrite(str(root / path), mask * 255)
            target = [{"name": name, "mask": path, "turn": 1}]
            out["grounding"].append(_record(index, stem, f"Segment the {name}.", f"<SEG><mask>{path}</mask>", "grounding", present, target))
            out["region"].append(_record(index, stem, f"What is in the area <region>{path}</region>?", name, "region", present, []))
        absent = next(n for n in NAMES if n not in masks)
        target = [{"name": absent, "mask": None, "turn": 1}]
        out["grounding"].append(
            _record(9, stem, f"Segment the {absent}.", f"There is no {absent} in this image.", "grounding", present, target)
        )
        for number, name in enumerate(NAMES):
            answer = "yes" if name in masks else "no"
            out["vqa_closed"].append(_record(number, stem, f"Is there a {name}?", answer, "vqa_closed", present, []))
        out["caption"].append(_record(0, stem, "Describe this image.", f"A {present[0]} and a {present[1]}.", "caption", present, []))
    files = {}
    for task, records in out.items():
        files[task] = root / f"{task}.json"
        files[task].write_text(json.dumps(records))
    return files
