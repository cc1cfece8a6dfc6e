import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from medplib.models.config_grounding import ConvConfig, DecoderConfig, GrounderConfig, VitConfig
from medplib.models.grounding import NamePromptEncoder, PixelNormaliser, build_grounder, unpad_resize, valid_mask
from medplib.training.losses import mask_bce, mask_dice, mask_sums
from medplib.types import Letterbox

STOCK = GrounderConfig(
    image_size=64,
    embed_dim=32,
    vit=VitConfig(width=16, depth=1, heads=2, patch_size=16, window_size=0, global_blocks=(0,)),
    decoder=DecoderConfig(heads=2, mlp_dim=32, presence_head=True),
)
FINE = GrounderConfig(
    kind="conv",
    image_size=64,
    embed_dim=32,
    normalisation="image",
    conv=ConvConfig(widths=(8, 12, 16, 16), context_heads=2),
    decoder=DecoderConfig(heads=2, mlp_dim=32, multimask_outputs=0, high_resolution=True, presence_head=True),
)
SUBPIXEL = dataclasses.replace(
    FINE, conv=dataclasses.replace(FINE.conv, stem_stride=4), decoder=dataclasses.replace(FINE.decoder, subpixel=True)
)
CONFIGS = {"stock": STOCK, "fine": FINE, "subpixel": SUBPIXEL}
LETTERBOXES = [Letterbox.fit(size, 64) for size in ((64, 64), (100, 40), (7, 9))]
IMAGE_INDEX = torch.tensor([2, 0, 0, 1, 2])


def build(name: str):
    torch.manual_seed(0)
    return build_grounder(CONFIGS[name]).eval()


def pixels(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "side"), [("stock", 16), ("fine", 32), ("subpixel", 32)])
def test_output_shapes(name, side):
    grounder = build(name)
    assert 64 // CONFIGS[name].output_stride == side
    found = grounder.decode(grounder.encode(pixels(), LETTERBOXES), IMAGE_INDEX, torch.randn(5, grounder.prompt_width))
    assert found.low_res_logits.shape == (5, side, side)
    assert found.mask_logits.shape == (5, 64, 64)
    assert found.quality.shape == found.presence_logit.shape == (5,)
    expected = F.interpolate(found.low_res_logits[:, None], size=64, mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found.mask_logits, expected)


def test_equals_the_library_called_pair_by_pair():
    grounder = build("stock")
    features, prompts = grounder.encode(pixels(), LETTERBOXES), torch.randn(5, 32)
    found = grounder.decode(features, IMAGE_INDEX, prompts)
    for n, image in enumerate(IMAGE_INDEX.tolist()):
        logits, quality = grounder.mask_decoder(
            image_embeddings=features.embedding[image : image + 1],
            image_pe=grounder.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=prompts[n][None, None],
            dense_prompt_embeddings=grounder.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1),
            multimask_output=False,
        )
        torch.testing.assert_close(found.low_res_logits[n], logits[0, 0], rtol=0, atol=1e-6)
        torch.testing.assert_close(found.quality[n], quality[0, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_pairs_do_not_influence_one_another(name):
    grounder = build(name)
    features, prompts = grounder.encode(pixels(), LETTERBOXES), torch.randn(5, 2, 32)
    together = grounder.decode(features, IMAGE_INDEX, prompts)
    for n, image in enumerate(IMAGE_INDEX.tolist()):
        own = grounder.encode(pixels()[image : image + 1], LETTERBOXES[image : image + 1])
        alone = grounder.decode(own, torch.tensor([0]), prompts[n : n + 1])
        torch.testing.assert_close(together.mask_logits[n], alone.mask_logits[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(together.presence_logit[n], alone.presence_logit[0], rtol=0, atol=1e-4)
    assert (together.mask_logits[0] - together.mask_logits[4]).abs().max() > 1e-3  # same image, another prompt
    assert (together.mask_logits[0] - together.mask_logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_no_prompts(name):
    grounder = build(name)
    found = grounder.decode(grounder.encode(pixels(), LETTERBOXES), IMAGE_INDEX[:0], torch.zeros(0, 32))
    assert found.mask_logits.shape == (0, 64, 64)
    assert found.quality.shape == found.presence_logit.shape == (0,)
    (found.mask_logits.sum() + found.quality.sum()).backward()  # a rank without masks still takes part


@pytest.mark.parametrize("name", ["fine", "subpixel"])
def test_every_parameter_learns(name):
    """Unused parameters would stall distributed training. Point, box and mask prompts are used by other batches."""
    grounder = build(name).train()
    found = grounder.decode(grounder.encode(pixels(), LETTERBOXES), IMAGE_INDEX, torch.randn(5, 32))
    (found.mask_logits.square().mean() + found.quality.sum() + found.presence_logit.sum()).backward()
    unused = {key.split(".")[0] for key, parameter in grounder.named_parameters() if parameter.grad is None}
    assert unused == {"prompt_encoder"}


def test_padding_is_zero_and_its_content_does_not_matter():
    valid = valid_mask(LETTERBOXES)
    image = pixels()
    for per_image in (False, True):
        normaliser = PixelNormaliser(per_image=per_image)
        found, statistics = normaliser(image, valid)
        changed, same_statistics = normaliser(torch.where(valid[:, None], image, 255 - image), valid)
        assert torch.equal(found, changed)
        assert torch.equal(statistics, same_statistics)
        assert found.masked_select(~valid[:, None]).abs().max() == 0


def test_normalisation_by_hand():
    image, valid = pixels(), valid_mask(LETTERBOXES)
    plain, statistics = PixelNormaliser(per_image=False)(image, valid)
    torch.testing.assert_close(plain[0, 0], (image[0, 0].float() - 123.675) / 58.395)
    inside = plain[1][:, valid[1]]
    torch.testing.assert_close(statistics[1], torch.cat([inside.mean(1), inside.std(1, correction=0)]), rtol=1e-4, atol=1e-5)
    own, _ = PixelNormaliser(per_image=True)(image, valid)
    inside = own[1][:, valid[1]]
    torch.testing.assert_close(torch.stack(torch.std_mean(inside, correction=0)), torch.tensor([1.0, 0.0]), rtol=1e-4, atol=1e-4)


def test_without_contrast_it_stays_finite():
    """An image without any spread, here because nothing of it is valid, is not divided by zero."""
    image = torch.full((1, 3, 64, 64), 7, dtype=torch.uint8)
    found, statistics = PixelNormaliser(per_image=True)(image, torch.zeros(1, 64, 64, dtype=torch.bool))
    assert found.isfinite().all()
    assert statistics.isfinite().all()


def test_prompts_of_points_boxes_and_masks():
    for name in CONFIGS:
        grounder = build(name)
        grid = CONFIGS[name].grid
        points, labels = torch.tensor([[[3.0, 4.0], [5.0, 6.0]]] * 2), torch.tensor([[1, 0], [1, -1]])
        sparse = grounder.prompt_points(points, labels)
        assert sparse.shape == (2, 3, 32)
        torch.testing.assert_close(sparse[1, 1], grounder.prompt_encoder.not_a_point_embed.weight[0])
        assert grounder.prompt_boxes(torch.tensor([[1.0, 2.0, 30.0, 40.0]])).shape == (1, 2, 32)
        features = grounder.encode(pixels(1), LETTERBOXES[:1])
        first = grounder.decode(features, torch.zeros(2, dtype=torch.int64), sparse)
        dense = grounder.prompt_masks(first.low_res_logits)
        assert dense.shape == (2, 32, grid, grid)
        second = grounder.decode(features, torch.zeros(2, dtype=torch.int64), sparse, dense)
        assert (first.mask_logits - second.mask_logits).abs().max() > 1e-4


@pytest.mark.parametrize("detached", [True, False])
def test_presence_gradient(detached):
    torch.manual_seed(0)
    decoder = dataclasses.replace(FINE.decoder, presence_detached=detached)
    grounder = build_grounder(dataclasses.replace(FINE, decoder=decoder))
    prompts = torch.randn(5, 32, requires_grad=True)
    grounder.decode(grounder.encode(pixels(), LETTERBOXES), IMAGE_INDEX, prompts).presence_logit.sum().backward()
    reached = {name.split(".")[0] for name, parameter in grounder.named_parameters() if parameter.grad is not None}
    assert (reached == {"presence"}) == detached
    assert (prompts.grad is None) == detached


def test_positions_do_not_lose_precision():
    grounder = build("stock")
    exact = grounder.prompt_encoder.get_dense_pe()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(grounder.prompt_encoder.get_dense_pe(), exact)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_half_precision_runs(name, how):
    """Under autocast, and with weights in bfloat16 as DeepSpeed holds them; the answer stays float32 and close."""
    grounder, prompts = build(name), torch.randn(5, 32)
    exact = grounder.decode(grounder.encode(pixels(), LETTERBOXES), IMAGE_INDEX, prompts)
    if how == "weights":
        grounder = grounder.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = grounder.decode(grounder.encode(pixels(), LETTERBOXES), IMAGE_INDEX, prompts)
    assert found.mask_logits.dtype == found.quality.dtype == found.presence_logit.dtype == torch.float32
    spread = exact.mask_logits.std()
    assert (found.mask_logits - exact.mask_logits).abs().mean() < 0.2 * spread


def direct_grounder():
    """A small conv grounder whose decoder can also do without its transformer."""
    decoder = DecoderConfig(1, 2, 32, 0, high_resolution=True, subpixel=True, upscaled_width=8, residual=True, presence_head=True)
    config = GrounderConfig("conv", 64, 32, "image", conv=ConvConfig(4, (8, 8, 16, 16)), decoder=decoder)
    torch.manual_seed(0)
    return build_grounder(config).eval()


def test_direct_decoding_is_hypernetwork_times_upscaled_image():
    model, boxes = direct_grounder(), [Letterbox.fit((64, 48), 64)] * 2
    features = model.encode(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), boxes)
    image, prompts = torch.tensor([1, 0, 1]), torch.randn(3, 32)
    out = model.decode_directly(features, image, prompts)
    assert out.low_res_logits.shape == (3, 32, 32)
    assert out.mask_logits.shape == (3, 64, 64)
    for n in range(3):
        one = int(image[n])
        source = features.embedding[one : one + 1].flatten(2).mT
        own = dataclasses.replace(
            features,
            embedding=features.embedding[one : one + 1],
            skips=tuple(skip[one : one + 1] for skip in features.skips),
            statistics=features.statistics[one : one + 1],
        )
        alone = model.upscaling(source, own, torch.tensor([0]))
        weights = model.mask_decoder.output_hypernetworks_mlps[0](prompts[n : n + 1])[:, None]
        torch.testing.assert_close(out.low_res_logits[n], model.upscaling.product(weights, alone)[0, 0], atol=1e-5, rtol=1e-5)
        strongest = out.low_res_logits[n].flatten().sort(descending=True).values[: round(0.006 * 32 * 32)].mean()
        wanted = model.presence.evidence_weight * strongest + model.presence.head[-1].bias[0]
        torch.testing.assert_close(out.presence_logit[n : n + 1], wanted)


def test_halves_give_one_mask_for_each_prompt_and_the_same():
    model, boxes = direct_grounder(), [Letterbox.fit((64, 48), 64)] * 2
    pixels, image, prompts = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.tensor([1, 0, 1]), torch.randn(3, 32)
    exact = model.decode(model.encode(pixels, boxes), image, prompts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.decode(model.encode(pixels, boxes), image, prompts)
        nothing = model.decode(model.encode(pixels, boxes), image[:0], prompts[:0])
    assert len(nothing.mask_logits) == len(nothing.presence_logit) == len(nothing.quality) == 0
    for name in ("low_res_logits", "mask_logits", "quality", "presence_logit"):
        torch.testing.assert_close(getattr(rough, name), getattr(exact, name), atol=0.05, rtol=0.05, msg=name)


def test_residual_decoder_starts_from_what_is_drawn_directly():
    """Without the transformer's share the whole decoder equals `decode_directly`; with it, it does not."""
    model = direct_grounder()
    features = model.encode(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), [Letterbox.fit((64, 64), 64)] * 2)
    image, prompts = torch.tensor([1, 0, 1]), torch.randn(3, 32)
    wanted = model.decode_directly(features, image, prompts).mask_logits
    assert (model.decode(features, image, prompts).mask_logits - wanted).abs().max() > 1e-3
    for factor in model.residual.parameters():
        torch.nn.init.zeros_(factor)
    torch.testing.assert_close(model.decode(features, image, prompts).mask_logits, wanted, atol=1e-5, rtol=1e-5)


sides = st.integers(1, 400)


@settings(max_examples=60, deadline=None)
@given(height=sides, aspect=st.floats(1 / 8, 8))
def test_unpad_resize_puts_every_pixel_back(height, aspect):
    """Logits that state their own place in the original image come back in place, and padding never leaks in."""
    width = max(1, round(height * aspect))
    box = Letterbox.fit((height, width), 64)
    (top, left), (h, w) = box.pad, box.resized_size
    rows = (torch.arange(64.0) - top + 0.5) * height / h - 0.5
    columns = (torch.arange(64.0) - left + 0.5) * width / w - 0.5
    grid_y, grid_x = torch.meshgrid(rows, columns, indexing="ij")
    poison = ~valid_mask([box])[0]
    logits = torch.stack([grid_y.masked_fill(poison, 1e6), grid_x.masked_fill(poison, 1e6)])
    found_y, found_x = unpad_resize(logits, [box], torch.tensor([0, 0]))
    assert found_y.shape == found_x.shape == (height, width)
    # bilinear interpolation clamps at the outermost cell centres
    margin_y, margin_x = 0.5 * height / h - 0.5, 0.5 * width / w - 0.5
    expected_y = torch.arange(float(height)).clamp(margin_y, height - 1 - margin_y)
    expected_x = torch.arange(float(width)).clamp(margin_x, width - 1 - margin_x)
    torch.testing.assert_close(found_y, expected_y[:, None].expand(height, width), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found_x, expected_x[None].expand(height, width), rtol=1e-4, atol=1e-3)


def test_valid_mask_is_the_window_of_each_letterbox():
    valid = valid_mask(LETTERBOXES)
    for mask, box in zip(valid, LETTERBOXES, strict=True):
        expected = torch.zeros(64, 64, dtype=torch.bool)
        expected[box.window] = True
        assert torch.equal(mask, expected)


def test_name_prompts():
    torch.manual_seed(0)
    names = NamePromptEncoder(vocab_size=10, width=8)
    found = names(torch.tensor([[1, 2, -1], [1, 2, -1], [1, 3, -1], [2, -1, -1], [-1, -1, -1]]))
    assert found.shape == (5, 8)
    assert found.isfinite().all()
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(names(torch.tensor([[1, 2, -1, -1, -1]]))[0], found[0])
    distances = torch.cdist(found[1:], found[1:]) + 10 * torch.eye(4)
    assert distances.min() > 0.1


def shapes_to_find() -> tuple[torch.Tensor, torch.Tensor]:
    """Four images with a bright disc and a dark square each; masks of disc and square per image."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    images, masks = [], []
    for cx, cy in ((18, 20), (44, 18), (20, 44), (46, 46)):
        disc = (x - cx) ** 2 + (y - cy) ** 2 < 100
        square = ((x - (64 - cx)).abs() < 8) & ((y - (64 - cy)).abs() < 8)
        images.append((120 + 80 * disc.int() - 80 * square.int()).clamp(0, 255).to(torch.uint8).expand(3, 64, 64))
        masks += [disc, square]
    return torch.stack(images), torch.stack(masks).float()


@pytest.mark.parametrize("name", ["fine", "subpixel"])
def test_learns_from_scratch(name):
    """Eight (image, name) pairs are learnt within 80 steps: initialisation and scale are right."""
    torch.manual_seed(0)
    grounder, names = build_grounder(CONFIGS[name]), NamePromptEncoder(vocab_size=2, width=32)
    images, masks = shapes_to_find()
    boxes, index, ids = [LETTERBOXES[0]] * 4, torch.arange(4).repeat_interleave(2), torch.tensor([[0], [1]] * 4)
    optimizer = torch.optim.AdamW([*grounder.parameters(), *names.parameters()], lr=3e-3)
    valid = torch.ones_like(masks, dtype=torch.bool)
    for _ in range(80):
        logits = grounder.decode(grounder.encode(images, boxes), index, names(ids)).mask_logits
        sums = mask_sums(logits, masks, valid)
        loss = mask_bce(sums) + mask_dice(sums)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert mask_dice(mask_sums(logits.sign() * 50, masks, valid)) < 0.1
