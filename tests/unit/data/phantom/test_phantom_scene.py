from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medplib.data.phantom import catalog
from medplib.data.phantom.anatomy import PLANS, draw, mirrored
from medplib.data.phantom.case import render_case
from medplib.data.phantom.config import MIN_ANATOMY_FRACTION, MIN_FINDING_FRACTION
from medplib.data.phantom.scene import build_scene
from medplib.data.phantom.shapes import Outline, View, ellipse, polygon


@pytest.fixture(scope="module")
def scenes():
    out = []
    for i in range(64):
        modality = catalog.MODALITIES[i % 8]
        regions = catalog.REGIONS_OF[modality.name]
        out.append(build_scene(modality, regions[i // 8 % len(regions)], np.random.default_rng(i)))
    return out


@given(st.floats(-0.5, 0.5), st.floats(0.65, 1.15), st.floats(-0.3, 0.3), st.floats(-0.8, 0.8), st.floats(-0.8, 0.8))
@settings(max_examples=40, deadline=None)
def test_view_carries_body_points_to_pixels_and_back(angle, scale, shift, x, y):
    view = View((96, 130), angle, scale, (shift, -shift / 2))
    (pixel,) = view.to_pixels(np.array([[x, y]]))
    assert view.to_body(*pixel) == pytest.approx((x, y), abs=1e-9)
    x_grid, y_grid = view.body_grid()
    assert view.to_body(17, 40) == pytest.approx((x_grid[40, 17], y_grid[40, 17]), abs=1e-5)


@pytest.mark.parametrize(("a", "b", "angle"), [(0.5, 0.5, 0.0), (0.6, 0.3, 0.7), (0.2, 0.55, -1.2)])
def test_the_area_of_an_ellipse_is_exact(a, b, angle):
    view = View((400, 400), 0.0, 1.0, (0.0, 0.0))
    rho, _ = Outline((0.1, -0.05), angle, ellipse(a, b)).polar(*view.body_grid())
    assert (rho < 1).sum() / view.pixels_per_unit**2 == pytest.approx(np.pi * a * b, rel=5e-3)


def test_an_angular_outline_is_a_polygon_without_gaps():
    table = polygon(np.random.default_rng(0), 5, 0.6)
    assert 0.4 < table.min() < table.max() < 1.15


def test_mirroring_reflects_the_drawn_shape():
    part = draw(PLANS["abdomen"][1], np.random.default_rng(0))
    x, y = View((90, 90), 0.0, 1.0, (0.0, 0.0)).body_grid()
    mask = part.outline.polar(x, y)[0] < 1
    reflected = mirrored(part).outline.polar(x, y)[0] < 1
    assert mask.sum() > 50
    assert np.mean(mask[:, ::-1] != reflected) < 2e-3


def test_sizes_of_images_vary_within_the_limits(scenes):
    sizes = [scene.view.size for scene in scenes]
    assert all(96 <= min(size) <= 160 and max(size) <= 1.6 * min(size) for size in sizes)
    assert len(set(sizes)) > 50


def test_everything_named_is_visible_enough_and_in_the_field_of_view(scenes):
    for scene in scenes:
        for layer in scene.named():
            least = MIN_FINDING_FRACTION if layer.is_finding else MIN_ANATOMY_FRACTION
            assert layer.mask.mean() >= least, layer.name
            assert not (layer.mask & ~scene.field).any(), layer.name


def test_a_finding_lies_whole_and_connected_inside_its_host(scenes):
    found = 0
    for scene in scenes:
        for layer in scene.named():
            if not layer.is_finding:
                continue
            found += 1
            assert np.array_equal(layer.mask, layer.rho < 1)
            assert cv2.connectedComponents(layer.mask.astype(np.uint8))[0] == 2
            host = next((h for h in scene.layers if h.name == layer.host), None)
            if host is not None:
                assert not (layer.mask & ~host.mask).any()
            else:
                assert layer.host == catalog.REGIONS[scene.region].ground
    assert found > 60


def test_anatomies_do_not_overlap_except_under_the_vessels_of_the_eye(scenes):
    for scene in scenes:
        layers = [layer for layer in scene.named() if not layer.is_finding and not (layer.name == "vessel tree" and scene.region == "eye")]
        assert sum(layer.mask.astype(int) for layer in layers).max(initial=0) <= 1


def test_sides_are_those_of_the_patient():
    seen = 0
    for i in range(40):
        scene = build_scene(catalog.modality_named("CT"), "chest", np.random.default_rng(i))
        for layer in scene.named():
            if layer.host in ("left lung", "right lung") and layer.side is not None:
                seen += 1
                assert layer.side == layer.host.split()[0]
    assert seen > 15


@pytest.mark.parametrize("name", ["nodule", "liver"])
@pytest.mark.parametrize("present", [True, False])
def test_a_wanted_structure_is_there_or_not(name, present):
    scenes = [build_scene(catalog.modality_named("CT"), "abdomen", np.random.default_rng(i), (name, present)) for i in range(12)]
    share = np.mean([any(layer.name == name for layer in scene.named()) for scene in scenes])
    assert share >= 0.75 if present else share == 0


@pytest.mark.parametrize("index", range(8))
def test_structures_stand_out_from_what_surrounds_them(index):
    contrasts = []
    for k in range(5):
        case = render_case(1, "train", index + 8 * k, 0)
        image = case.image.reshape(*case.image.shape[:2], -1).astype(np.float32) / 255
        for mask in case.masks.values():
            wide, thin = (cv2.dilate(mask.astype(np.uint8), np.ones((k, k), np.uint8)) > 0 for k in (9, 3))
            inner = mask & (cv2.erode(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0)
            contrasts.append(np.abs(np.median(image[inner], axis=0) - np.median(image[wide & ~thin], axis=0)).max())
    assert np.mean(np.asarray(contrasts) > 0.08) >= 0.85


def test_brightness_does_not_give_the_structure_away():
    spleen, liver = [], []
    for i in range(40):
        case = render_case(2, "train", 8 * i, 0)
        for name, values in (("spleen", spleen), ("liver", liver)):
            if (name, 1) in case.masks:
                values.append(np.median(case.image[case.masks[(name, 1)]]))
    assert max(min(spleen), min(liver)) < min(max(spleen), max(liver))  # the ranges overlap


def test_the_mean_place_of_a_structure_is_a_poor_answer():
    masks: dict[str, list[np.ndarray]] = {}
    for i in range(240):
        modality = catalog.MODALITIES[i % 8]
        regions = catalog.REGIONS_OF[modality.name]
        scene = build_scene(modality, regions[i // 8 % len(regions)], np.random.default_rng(1000 + i))
        for layer in scene.named():
            small = cv2.resize(layer.mask.astype(np.uint8), (48, 48), interpolation=cv2.INTER_NEAREST) > 0
            masks.setdefault(layer.name, []).append(small)
    scores = {}
    for name, drawn in masks.items():
        half = len(drawn) // 2
        mean, rest = np.mean(drawn[:half], axis=0), np.stack(drawn[half:])
        dices = [np.mean(2 * (rest & (mean > t)).sum((1, 2)) / (rest.sum((1, 2)) + (mean > t).sum())) for t in (0.1, 0.2, 0.3, 0.5)]
        scores[name] = max(dices)
    assert len(scores) == len(catalog.CLASS_IDS)
    assert np.mean(list(scores.values())) < 0.35, scores
