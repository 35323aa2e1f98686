"""Further channels of stage 2: the other side of the head, and where in it a window lies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.batches.context import cut_mirrored, join_channels, position_in, read_window, window_channels
from data.batches.transforms import apply_transforms, build_transforms
from data.batches.windows import RegionWindows, TrainingWindows, WindowCutter
from data.files.space import cut
from data.files.volumes import write_volume
from data.scans.cohort import Case
from data.scans.grid import Grid
from data.scans.prepared import cached_scan
from models.segmentation.module import StrokeFormer
from tests import drawn
from utils.regions.region import Region, bounding_region

BOTH = ("mirror", "position")


@pytest.mark.parametrize(("context", "channels"), [((), 2), (("mirror",), 4), (("position",), 5), (BOTH, 7)])
def test_each_context_adds_its_channels(context, channels):
    assert window_channels(2, context) == channels
    scan = np.zeros((2, 6, 6, 6), np.float16)
    window = read_window(scan, (0, 0, 0), (4, 4, 4), context, Region(0, 6, 0, 0, 6, 6))
    assert join_channels(window).shape == (channels, 4, 4, 4) and join_channels(window).dtype == np.float32


# --- mirror --------------------------------------------------------------------------------------------


def test_mirror_exchanges_the_sides_of_the_brain_not_of_the_volume():
    row = np.array([0, 1, 2, 3, 4, 0, 0, 0])  # along H; the brain is 1 2 3 4
    volume = np.broadcast_to(row[:, None], (2, 8, 2))
    brain = bounding_region(volume > 0)
    assert cut_mirrored(volume, (0, 0, 0), (2, 8, 2), brain)[0, :, 0].tolist() == [0, 4, 3, 2, 1, 0, 0, 0]
    assert cut_mirrored(volume, (0, 3, 0), (2, 2, 2), brain)[0, :, 0].tolist() == [2, 1]


@given(st.tuples(*[st.integers(-4, 12)] * 3), st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 6), st.integers(1, 6))
def test_window_of_the_mirror_is_what_the_mirrored_volume_holds_there(start, shape, left, width):
    volume = np.random.default_rng(0).random((1, 7, 12, 9))
    brain = Region(0, 7, 0, left, 9, left + width)
    whole = cut_mirrored(volume, (0, 0, 0), (7, 12, 9), brain)
    for h in range(12):
        opposite = 2 * left + width - 1 - h
        expected = volume[:, :, opposite] if 0 <= opposite < 12 else 0
        assert (whole[:, :, h] == expected).all()
    np.testing.assert_array_equal(
        # Beyond the volume the opposite side may still be inside it.
        np.where(cut(np.ones_like(volume, bool), start, shape), cut_mirrored(volume, start, shape, brain), 0),
        cut(whole, start, shape),
    )


# --- position ------------------------------------------------------------------------------------------


def test_position_runs_over_the_brain_and_is_alike_on_both_sides():
    brain = Region(2, 5, 0, 1, 5, 6)  # 3 slices, 5 rows from left to right, 5 columns
    d, h, w = position_in(brain, (0, 0, 0), (6, 7, 5))
    assert d[:, 0, 0].tolist() == [-1, -1, -1, 0, 1, 1]
    assert h[0, :, 0].tolist() == [1, 1, 0.5, 0, 0.5, 1, 1]
    assert w[0, 0].tolist() == [-1, -0.5, 0, 0.5, 1]


def test_position_of_a_window_is_that_of_the_volume_there():
    brain = Region(1, 9, 3, 2, 12, 11)
    whole = position_in(brain, (0, 0, 0), (10, 14, 12))
    np.testing.assert_array_equal(position_in(brain, (3, 5, 2), (4, 6, 8)), cut(whole, (3, 5, 2), (4, 6, 8)))


# --- augmentation --------------------------------------------------------------------------------------


def head(lesion=True):
    """A window that is a whole head, alike on both sides but for a lesion on one, with its context."""
    rng = np.random.default_rng(0)
    half = rng.random((1, 8, 8, 16)).astype(np.float32) * 0.5 + 0.4
    scan = np.concatenate([half, half[:, :, ::-1]], 2)
    mask = np.zeros(scan.shape[1:], bool)
    mask[3:6, 3:6, 5:9] = lesion
    scan[0][mask] = 0.2
    brain = Region(0, 8, 0, 0, 16, 16)
    item = read_window(scan, (0, 0, 0), mask.shape, BOTH, brain)
    mirror_mask = cut_mirrored(mask, (0, 0, 0), mask.shape, brain)
    return {**item, "mask": mask[None].astype(np.uint8), "mirror_mask": mirror_mask[None].astype(np.uint8)}


def augmented(name, item):
    """The item after a transform that did change it."""
    for seed in range(20):
        changed = apply_transforms(build_transforms([name], 3), item, np.random.default_rng(seed))
        if not np.array_equal(changed["image"], item["image"]):
            return changed
    raise AssertionError(f"{name} never acts")


@pytest.mark.parametrize("name", ["flip", "contrast", "lesion_contrast"])
def test_mirror_stays_the_mirror_image(name):
    changed = augmented(name, head())
    image, mirror = changed["image"]
    np.testing.assert_allclose(mirror, image[:, ::-1], atol=1e-6)
    np.testing.assert_array_equal(changed["mirror_mask"], changed["mask"][:, :, ::-1])


@pytest.mark.parametrize("name", ["affine", "contrast", "bias_field"])
def test_where_both_sides_are_alike_they_stay_so(name):
    image, mirror = augmented(name, head(lesion=False))["image"]
    np.testing.assert_allclose(image, mirror, atol=1e-6)


@pytest.mark.parametrize("name", ["contrast", "noise", "bias_field", "resolution", "lesion_contrast"])
def test_no_change_of_contrast_touches_the_position(name):
    item = head()
    np.testing.assert_array_equal(augmented(name, item)["position"], item["position"])


@pytest.mark.parametrize("shape", [(24, 20), (12, 24, 20)])
def test_lower_resolution_blurs_the_image_alone(shape):
    rng = np.random.default_rng(0)
    item = {"image": rng.random((2, *shape), np.float32), "mask": (rng.random((1, *shape)) > 0.5).astype(np.uint8)}
    compose, blurred = build_transforms(["resolution"], len(shape)), 0
    for seed in range(10):
        changed = apply_transforms(compose, item, np.random.default_rng(seed))
        np.testing.assert_array_equal(changed["mask"], item["mask"])
        assert (
            changed["image"].shape == item["image"].shape and 0 <= changed["image"].min() <= changed["image"].max() <= 1
        )
        rougher = np.abs(np.diff(item["image"])).mean()
        blurred += np.abs(np.diff(changed["image"])).mean() < 0.99 * rougher
    assert 0 < blurred < 10


def test_position_turns_with_the_head():
    item = head()
    item["image"] = np.concatenate([item["position"], item["position"]])
    changed = augmented("affine", item)
    inner = (slice(None), slice(2, 6), slice(5, 11), slice(5, 11))  # the border is padded in another way
    np.testing.assert_allclose(changed["image"][:3][inner], changed["position"][inner], atol=1e-5)


# --- training and inference alike ----------------------------------------------------------------------


@pytest.fixture
def case(tmp_path):
    shape = (1, 20, 24, 28)
    arrays = {"T1w": np.random.default_rng(0).random(shape, np.float32) + 1, "mask": np.zeros(shape, np.uint8)}
    arrays["brain_mask"] = np.zeros(shape, np.uint8)
    arrays["brain_mask"][:, 1:19, 3:20, 2:27] = 1
    for name, array in arrays.items():
        write_volume(tmp_path / f"sub-1_{name}.npy", array)
    return Case("1", None, *(tmp_path / f"sub-1_{name}.npy" for name in arrays))


def test_network_sees_the_same_window_in_training_and_in_inference(case, tmp_path):
    region = Region(2, 18, 6, 4, 22, 20)
    grid = Grid((1, 20, 24, 28))
    learned = RegionWindows([case], {case.name: [region]}, WindowCutter(grid, (16,) * 3, tmp_path, BOTH))[0]
    assert set(learned) == {"image", "mask", "region", "has_lesion"} and learned["image"].shape == (5, 16, 16, 16)
    model, seen = StrokeFormer(roi_size=(16,) * 3, seg_context=list(BOTH)), []
    model.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0]))
    prepared = cached_scan(case, grid, tmp_path)
    probabilities = model.segment(prepared, [region], overlap=0.0)  # it is all brain, so the window is the region
    np.testing.assert_array_equal(seen[0][0].numpy(), learned["image"])
    assert probabilities.shape == (2, 20, 24, 28) and (probabilities[1][region.slices] > 0).all()


def test_same_windows_come_from_any_transform_and_without_context_nothing_changes(case, tmp_path):
    regions, names = {case.name: [Region(2, 18, 6, 4, 22, 20)]}, ["flip", "affine", "contrast", "noise"]
    plain, rich = (
        TrainingWindows([case], regions, WindowCutter(Grid((1, 20, 24, 28)), (16,) * 3, tmp_path, context), 5, names)
        for context in ((), BOTH)
    )
    assert plain[0, 0]["image"].shape == (1, 16, 16, 16) and rich[0, 0]["image"].shape == (5, 16, 16, 16)
    for epoch in range(5):
        np.testing.assert_array_equal(plain[epoch, 0]["region"], rich[epoch, 0]["region"])


def test_scan_without_context_needs_no_bounding_box(monkeypatch):
    brains, shape = [], (16, 16, 16)

    def note(scan, start, shape, context, brain):
        brains.append(brain)
        return read_window(scan, start, shape, context, brain)

    monkeypatch.setattr("models.segmentation.windows.read_window", note)
    scan = drawn.prepared("a.npy", np.ones((1, *shape), np.float16), np.ones(shape, bool))
    StrokeFormer(roi_size=shape).segment(scan, None)
    assert brains == [None]
