"""Row of scripts/bench.py about features of a frozen image encoder that are kept on disk."""

import tempfile
from pathlib import Path

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
from bench_parts import Row, interleaved, median_ratio

from medplib.models.config_grounding import GrounderConfig
from medplib.models.grounding import build_grounder
from medplib.planning.resolve import plan_stage
from medplib.training.feature_cache import FeatureCache
from medplib.types import Letterbox

ROOT = Path(__file__).resolve().parents[1]


@torch.no_grad()
def feature_rows(device: str, *, config: GrounderConfig | None = None, images: int = 2, repeats: int = 5) -> list[Row]:
    """Looking the features of images up, beside encoding them: the share of the encoder's time that is saved.

    `config` None is the grounder of stage IV at its real size.
    """
    config = config or plan_stage([ROOT / "configs" / "stages" / "stage4_moe.yaml"], vocab_size=None).model.grounder
    torch.manual_seed(0)
    with torch.device(device):
        grounder = build_grounder(config).eval()
    size = config.image_size
    pixels, boxes = (
        torch.randint(0, 255, (images, 3, size, size), dtype=torch.uint8).to(device),
        [Letterbox.fit((size, size), size)] * images,
    )
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), encoder_sha256="bench", gigabytes=1.0)

        def encode() -> torch.Tensor:
            return grounder.encode(pixels, boxes).embedding

        def look_up() -> torch.Tensor:
            return cache.through(pixels, boxes, grounder.encode).embedding

        look_up()
        assert torch.allclose(look_up(), encode(), atol=1e-6), "the features differ"
        seconds = interleaved({"encode": encode, "look_up": look_up}, device=device, repeats=repeats)
    ratio, details = median_ratio(seconds, "encode", "look_up")
    details["milliseconds_per_image"] = 1000 * details["look_up_seconds"] / images
    name = "features kept on disk: share of the encoder's time that is saved"
    return [Row("c", name, 1 - 1 / ratio, "the encoder", 1.0, 0.9, 0.99, False, details)]
