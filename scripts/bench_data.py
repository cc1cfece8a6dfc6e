"""Rows of scripts/bench.py about reading data: samples per second of the training set and collator beside decoding the same files."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import numpy as np
from bench_parts import Row, interleaved, median_ratio
from PIL import Image
from scipy.ndimage import gaussian_filter

from medplib.data.augment import AugmentConfig
from medplib.data.cache import FileCache
from medplib.data.collate import Collator
from medplib.data.dataset import DrawConfig, TrainingSet
from medplib.data.encode import SampleEncoder
from medplib.tokenizer import train_tokenizer
from medplib.types import Batch, InputSpec, Meta, Record, Target, Turn

BATCH = 16
SCALES = ((60, 12), (9, 1))
KINDS = {
    "512": ((512, 448), True, InputSpec(vision_size=256, image_tokens=256, region_grid=16, sam_size=256)),
    "256": ((256, 256), False, InputSpec(vision_size=128, image_tokens=64, region_grid=16, sam_size=128)),
    "full": ((512, 448), True, InputSpec(vision_size=336, image_tokens=576, region_grid=24, sam_size=256)),
}
"""Kind -> size of the pictures (H, W), in colour or not, and what the model wants: as configs/real_small, as configs/demo, at full size."""


def data_rows(device: str, *, kinds: tuple[str, ...] = tuple(KINDS), images: int = 4 * BATCH) -> list[Row]:
    """Pictures and masks as PNG; the training set without augmentation and without its cache, so that every sample decodes two files."""
    rows = []
    for kind in kinds:
        size, colour, spec = KINDS[kind]
        with tempfile.TemporaryDirectory() as folder:
            records = written(Path(folder), size, colour=colour, count=images)
            load, decode = _loading(records, spec), _decoding(records)
            checked(load(), spec)
            ratio, details = median_ratio(interleaved({"decode": decode, "load": load}, device="cpu", repeats=7), "decode", "load")
        details["samples_per_second"] = images / details["load_seconds"]
        name = f"share of the decoding of image and mask in reading samples, {size[0]} x {size[1]} {'colour' if colour else 'grey'}, {kind}"
        rows.append(Row(f"h_{kind}", name, ratio, "Pillow", 1.0, 0.8, 0.92, False, details))
    return rows


def written(folder: Path, size: tuple[int, int], *, colour: bool, count: int) -> list[Record]:
    """`count` textured pictures with a round target each, one question about it."""
    rng, records = np.random.default_rng(0), []
    y, x = np.mgrid[: size[0], : size[1]]
    for number in range(count):
        # Smooth at two scales: such a picture takes as many bytes and as long to decode as a photograph of its size.
        smooth = 120 + sum(
            amplitude * gaussian_filter(rng.normal(0, width, (*size, 3 if colour else 1)), (width, width, 0)) for amplitude, width in SCALES
        )
        mask = (y - rng.uniform(0.3, 0.7) * size[0]) ** 2 + (x - rng.uniform(0.3, 0.7) * size[1]) ** 2 < (0.15 * size[0]) ** 2
        paths = folder / f"{number}.png", folder / f"{number}_mask.png"
        Image.fromarray(np.clip(smooth, 0, 255).astype(np.uint8).squeeze()).save(paths[0])
        Image.fromarray(mask.astype(np.uint8) * 255).save(paths[1])
        turns = Turn("human", "<image>\nSegment the disc."), Turn("gpt", "<SEG>")
        records.append(Record(str(number), (paths[0],), turns, (Target("disc", paths[1]),), meta=Meta(task="grounding", source="bench")))
    return records


def _loading(records: list[Record], spec: InputSpec) -> Callable[[], list[Batch]]:
    tokenizer = train_tokenizer(["Segment the disc. USER: ASSISTANT:"], 320)
    encoder = SampleEncoder(tokenizer=tokenizer, spec=spec)
    draw = DrawConfig(conversations=1)
    data = TrainingSet(records=records, encoder=encoder, draw=draw, augment=AugmentConfig(), seed=0, cache=FileCache(0))
    collate = Collator(encoder.text)
    return lambda: [collate([data[i] for i in range(start, start + BATCH)]) for start in range(0, len(records), BATCH)]


def _decoding(records: list[Record]) -> Callable[[], None]:
    def run() -> None:
        for record in records:
            for path in (record.images[0], record.targets[0].mask):
                with Image.open(path) as image:
                    image.load()

    return run


def checked(batches: list[Batch], spec: InputSpec) -> None:
    """What was read is a mask per sample and pixels as bytes."""
    for batch in batches:
        assert batch.sam_pixels.dtype == batch.target_masks.dtype == batch.vision_pixels.dtype
        assert batch.sam_pixels.shape[2] == spec.sam_size
        assert bool((batch.target_masks.flatten(1).amax(dim=1) == 255).all())
