"""Evidence maps: what is read from them, which words carry it, and that the vision encoder's maps are what the grounder draws."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from medplib.errors import InputError
from medplib.models.build import ModelConfig, build_model, input_spec
from medplib.models.evidence import FACTS, GRID, GroundedWords, map_facts
from medplib.models.grounding import GrounderConfig
from medplib.models.language import LanguageConfig
from medplib.models.vision import EVIDENCE_SCALE, VisionConfig
from medplib.types import Letterbox

NAME_IDS = ((5,), (3, 5), (7, 8, 9))


def _map(*, rows: slice, columns: slice, side: int = 16, logit: float = 20.0) -> torch.Tensor:
    logits = torch.full((1, 1, side, side), -logit)
    logits[..., rows, columns] = logit
    return torch.tanh(logits / EVIDENCE_SCALE)


@pytest.mark.parametrize(
    ("rows", "columns", "area", "down", "right"),
    [
        (slice(0, 16), slice(0, 16), 1.0, 0.0, 0.0),
        (slice(0, 8), slice(0, 16), 0.5, -8 / 15, 0.0),
        (slice(12, 16), slice(0, 4), 1 / 16, 0.8, -0.8),
    ],
)
def test_facts_of_a_rectangle(rows: slice, columns: slice, area: float, down: float, right: float) -> None:
    facts = map_facts(_map(rows=rows, columns=columns))[0, 0]
    assert facts.shape == (FACTS,)
    grid, scalars = facts[: GRID**2], facts[GRID**2 :]
    assert float(grid.mean()) == pytest.approx(area, abs=1e-3)
    wanted = [1.0, 1.0, (torch.log(torch.tensor(area + 0.002)) + 4) / 2, down, right]
    torch.testing.assert_close(scalars, torch.tensor([float(w) for w in wanted]), atol=2e-3, rtol=0)


def test_nothing_shown_has_no_area() -> None:
    facts = map_facts(_map(rows=slice(0, 0), columns=slice(0, 0)))[0, 0]
    assert float(facts[: GRID**2].abs().max()) < 1e-4
    assert float(facts[GRID**2 + 1]) == pytest.approx(-1, abs=1e-3)


def _words() -> GroundedWords:
    torch.manual_seed(0)
    return GroundedWords(name_ids=NAME_IDS, vision_width=10, width=6).eval()


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        ([1, 5, 2], {1: 0}),
        ([3, 5, 5], {1: 1, 2: 0}),  # the longer name wins where both end
        ([7, 8, 1, 8, 9], {}),
        ([7, 8, 9, -200, 5], {2: 2, 4: 0}),
    ],
)
def test_the_word_that_ends_a_name_carries_it(ids: list[int], named: dict[int, int]) -> None:
    words = _words()
    shown = torch.arange(4.0)[None, :, None].expand(1, 4, 6)  # entry k holds k; the last is that of ordinary words
    carried = words(torch.zeros(1, len(ids), 6), torch.tensor([ids]), shown)[0, :, 0]
    assert carried.tolist() == [float(named.get(i, len(NAME_IDS))) for i in range(len(ids))]


def test_the_last_tokens_are_enough_for_the_next_word() -> None:
    """Generation embeds a window of `longest` tokens and keeps the last: the same as embedding everything."""
    words, shown = _words(), torch.randn(1, 4, 6)
    ids = torch.tensor([[1, 7, 8, 9, 3, 5]])
    whole = words(torch.zeros(1, 6, 6), ids, shown)
    for end in range(words.longest, 7):
        window = ids[:, end - words.longest : end]
        torch.testing.assert_close(words(torch.zeros(1, words.longest, 6), window, shown)[:, -1], whole[:, end - 1])


def test_several_images_of_a_row_are_averaged() -> None:
    words, features = _words(), torch.rand(3, 4, 4, 10)
    both = words.shown(features, torch.tensor([0, 0, 1]), 2)
    alone = words.shown(features, torch.tensor([0, 1, 2]), 3)
    torch.testing.assert_close(both[0], alone[:2].mean(dim=0))
    torch.testing.assert_close(both[1], alone[2])


def test_maps_are_what_the_grounder_draws_directly() -> None:
    decoder = {"depth": 1, "heads": 2, "mlp_dim": 32, "multimask_outputs": 0, "upscaled_width": 8}
    from medplib.config import from_dict

    grounder = from_dict(
        GrounderConfig,
        {
            "kind": "conv", "image_size": 64, "embed_dim": 32, "normalisation": "image",
            "conv": {"stem_stride": 4, "widths": (8, 16, 16, 32)},
            "decoder": {**decoder, "high_resolution": True, "subpixel": True, "residual": True},
        },
        where="test",
    )  # fmt: skip
    language = LanguageConfig(hidden_size=32, layers=1, heads=2, mlp_size=32)
    vision = VisionConfig(kind="grounder", image_size=64, grid=8, width=24, grounder=grounder, names=("a", "b"), name_ids=((3,), (4, 5)))
    config = ModelConfig(vision=vision, language=language, grounder=grounder, name_prompts=True)
    torch.manual_seed(0)
    model = build_model(config, vocab_size=20).eval()
    assert input_spec(config, with_sam=False).image_tokens == 8 * 8 + 2
    own = model.grounder.state_dict()
    encoder = {k: own[k] for k in model.vision.backbone.state_dict() if k in own}
    model.vision.backbone.load_state_dict(encoder, strict=False)
    prompts = model.names(torch.tensor([[3, -1], [4, 5]]))
    with torch.no_grad():
        model.vision.backbone.evidence.weight.copy_(model.grounder.direct_weights(prompts))
        pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
        boxes = [Letterbox.fit((64, 64), 64)]
        drawn = model.grounder.decode_directly(model.grounder.encode(pixels, boxes), torch.tensor([0, 0]), prompts).low_res_logits
        maps = model.vision(pixels, boxes)[0, ..., -2:].permute(2, 0, 1)
    wanted = torch.tanh(functional.adaptive_avg_pool2d(drawn, 8) / EVIDENCE_SCALE)
    torch.testing.assert_close(maps, wanted, atol=1e-5, rtol=1e-4)


def test_names_need_a_grounder() -> None:
    with pytest.raises(InputError, match="names only with kind 'grounder'"):
        VisionConfig(kind="timm", names=("liver",))
