"""Row of scripts/bench.py about volumes: slices asked in batches beside one at a time, by the call behind `python -m medplib.predict`."""

import tempfile
from dataclasses import asdict
from pathlib import Path

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import nibabel as nib
import numpy as np
import torch
from bench_parts import Row, interleaved, median_ratio

from medplib.imaging.nifti import read_volume
from medplib.imaging.volume import Plane
from medplib.inference.ask import RegionPrompts, VolumeAnswer, ask_volume
from medplib.inference.predictor import Predictor
from medplib.lineage import Lineage, save_checkpoint
from medplib.models.build import ModelConfig, build_model
from medplib.models.config_grounding import ConvConfig, DecoderConfig, GrounderConfig
from medplib.models.language import LanguageConfig
from medplib.models.projector import ProjectorConfig
from medplib.models.vision import VisionConfig
from medplib.tensorfiles import StoredTensor
from medplib.tokenizer import train_tokenizer

SLICES, SIDE, BATCH, WORDS = 32, 128, 8, 6


def volume_rows(device: str, *, slices: int = SLICES, repeats: int = 5) -> list[Row]:
    """A model of the demo's kind with random weights; the answers of all slices are equal either way."""
    with tempfile.TemporaryDirectory() as folder:
        predictor, plane = _predictor(Path(folder), device), _plane(Path(folder), slices)

        def ask(batch_size: int) -> VolumeAnswer:
            options = {"slices": range(slices), "threshold": 0.5, "batch_size": batch_size}
            return ask_volume(predictor, plane, "Segment the disc.", RegionPrompts(), **options)

        alone, together = ask(1), ask(BATCH)
        assert [p.text for p in alone.predictions] == [p.text for p in together.predictions], "the words differ"
        runs = {"one_by_one": lambda: ask(1), "batches": lambda: ask(BATCH)}
        ratio, details = median_ratio(interleaved(runs, device=device, repeats=repeats), "one_by_one", "batches")
    details["slices_per_second"] = slices / details["batches_seconds"]
    name = f"slices of a volume, answers of {WORDS} words: one at a time over batches of {BATCH}"
    return [Row("l", name, ratio, "a loop over slices", float("nan"), 3.0, 5.0, False, details)]


def _plane(folder: Path, slices: int) -> Plane:
    """Noise with a disc, written as NIfTI and read again."""
    y, x = np.mgrid[:SIDE, :SIDE]
    disc = (y - SIDE / 2) ** 2 + (x - SIDE / 2) ** 2 < (SIDE / 5) ** 2
    data = np.random.default_rng(0).normal(100, 10, (SIDE, SIDE, slices)).astype(np.float32) + 80 * disc[..., None]
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 1.0, 3.0, 1.0])), folder / "volume.nii.gz")
    return read_volume(folder / "volume.nii.gz").plane("axial")


def _predictor(folder: Path, device: str) -> Predictor:
    """A checkpoint with random weights, read as any other."""
    torch.manual_seed(0)
    decoder = DecoderConfig(depth=1, heads=4, mlp_dim=64, multimask_outputs=0, high_resolution=True, subpixel=True, presence_head=True)
    config = ModelConfig(
        vision=VisionConfig(image_size=96, grid=12, width=64),
        projector=ProjectorConfig(pool=2),
        language=LanguageConfig(hidden_size=128, layers=4, heads=8, mlp_size=352),
        grounder=GrounderConfig(kind="conv", image_size=96, embed_dim=64, conv=ConvConfig(widths=(16, 32, 48, 64)), decoder=decoder),
    )
    tokenizer = train_tokenizer(["Segment the disc. USER: ASSISTANT: There is no disc in this image."], 360)
    model = build_model(config, vocab_size=len(tokenizer))
    save_checkpoint(
        folder / "model",
        tensors={name: StoredTensor.of(tensor) for name, tensor in model.state_dict().items()},
        config={"model": asdict(config)},
        save_tokenizer=tokenizer.save_pretrained,
        lineage=Lineage(stage="bench", trained=(), steps=0),
    )
    return Predictor(folder / "model", device=device, max_new_tokens=WORDS)
