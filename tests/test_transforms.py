"""Random changes of what a network learns from."""

import numpy as np
import pytest

from data.batches.transforms import RandLesionContrastd, apply_transforms, build_transforms


@pytest.mark.parametrize("shape", [(24, 20), (14, 24, 20)])
def test_lesion_contrast_scales_what_sets_the_lesion_apart(shape):
    mask = np.zeros((1, *shape), np.uint8)
    mask[(0, *[slice(8, 12)] * len(shape))] = 1
    image = np.where(mask, 0.2, 0.6).astype(np.float32)
    faded = RandLesionContrastd(prob=1, factor=(0.5, 0.5))({"image": image, "mask": mask})["image"]
    np.testing.assert_array_equal(faded[mask == 0], image[mask == 0])
    np.testing.assert_allclose(faded[mask == 1], 0.4, atol=1e-5)


def test_slice_without_lesion_keeps_its_contrast():
    item = {"image": np.random.default_rng(0).random((1, 8, 8)), "mask": np.zeros((1, 8, 8))}
    assert np.array_equal(RandLesionContrastd(prob=1, factor=(0.5, 0.5))(item)["image"], item["image"])


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
