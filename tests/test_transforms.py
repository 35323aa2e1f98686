"""Random changes of what a network learns from."""

import numpy as np
import pytest
import torch

from data.batches.transforms import TRANSFORMS, augment
from data.settings import TRANSFORMS as NAMES

SHAPES = pytest.mark.parametrize("shape", [(1, 24, 20), (12, 24, 20)])  # of slices and of windows


def generators(n, seed=0):
    return [np.random.default_rng([seed, index]) for index in range(n)]


def windows(shape, n=40):
    """The same window `n` times: tissue of two channels, darker in a lesion, in a brain that does not fill it."""
    labels = torch.zeros(2, *shape, dtype=torch.uint8)
    for label, margin in zip(labels, (3, 8), strict=True):  # a third of each side, and an eighth
        label[tuple(slice(size // margin, size - size // margin) for size in shape)] = 1
    image = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * (0.8 - 0.4 * labels[0]) * labels[1]
    return image.expand(n, -1, -1, -1, -1), labels.expand(n, -1, -1, -1, -1)


def changed(items, others):
    return [not torch.equal(*pair) for pair in zip(items, others, strict=True)]


@SHAPES
@pytest.mark.parametrize("name", NAMES)
def test_each_transform_changes_half_of_the_windows_and_their_labels_only_where_it_moves_them(name, shape):
    images, labels = windows(shape)
    others, maps = augment([name], images, labels, generators(40))
    assert set(TRANSFORMS) == set(NAMES) and 8 <= sum(changed(images, others)) <= 32
    assert any(changed(labels, maps)) == (name == "affine")  # this one looks the same in the mirror
    assert maps.dtype == torch.uint8 and set(maps.unique().tolist()) == {0, 1}


@SHAPES
def test_what_happens_to_a_window_does_not_depend_on_its_batch(shape):
    images, labels = windows(shape, 6)
    together, other = (augment(NAMES, images, labels, generators(6, seed)) for seed in (0, 1))
    alone = [augment(NAMES, images[:1], labels[:1], generators(6)[i : i + 1]) for i in range(6)]
    for which in (0, 1):
        assert torch.equal(together[which], torch.cat([pair[which] for pair in alone]))
    assert any(changed(together[0], other[0]))


@SHAPES
def test_labels_move_with_the_image_and_keep_their_size(shape):
    _, labels = windows(shape)
    labels = labels.clone()
    labels[..., : shape[1] // 2, :] = 0  # one side alone
    others, maps = augment(["flip", "affine"], labels.float(), labels, generators(40))
    assert len({each.numpy().tobytes() for each in maps}) > 15
    assert ((others > 0.5) != (maps > 0)).float().mean() < 0.01
    assert float(maps.sum()) == pytest.approx(float(labels.sum()), rel=0.05)


def test_windows_are_turned_about_the_depth_alone():
    images = torch.linspace(0.1, 1, 12).view(1, 1, 12, 1, 1).expand(40, 1, 12, 24, 20)
    others, _ = augment(["affine"], images, torch.zeros(40, 1, 12, 24, 20, dtype=torch.uint8), generators(40))
    inside = others[:, 0, 2:-2, 8:-8, 8:-8]
    assert torch.allclose(inside.amin((2, 3)), inside.amax((2, 3)), atol=1e-6)
    thickness = inside[..., 0, 0].diff(dim=1).mean(1) * 11 / 0.9
    assert thickness.min() < 0.95 and thickness.max() > 1.05


@SHAPES
def test_lesion_contrast_scales_what_sets_the_lesion_apart_and_nothing_else(shape):
    _, labels = windows(shape)
    lesion = labels[:, :1] > 0
    images = torch.where(lesion, 0.2, 0.6)
    others, _ = augment(["lesion_contrast"], images, labels, generators(40))
    assert torch.equal(others[~lesion], images[~lesion])
    factors = ((0.6 - others) / 0.4)[lesion].view(40, -1)
    assert torch.allclose(factors.amin(1), factors.amax(1), atol=1e-3)
    assert 0.299 < factors.min() < 0.5 and 1.1 < factors.max() < 1.201
    healthy, _ = augment(["lesion_contrast"], images, torch.zeros_like(labels), generators(40))
    assert torch.equal(healthy, images)


@SHAPES
def test_lower_resolution_blurs(shape):
    images = torch.rand(10, 2, *shape, generator=torch.Generator().manual_seed(0))
    others, _ = augment(["resolution"], images, torch.zeros(10, 1, *shape, dtype=torch.uint8), generators(10))
    rough, rougher = (each.diff(dim=-1).abs().mean((1, 2, 3, 4)) for each in (others, images))
    assert 0 < (rough < 0.99 * rougher).sum() < 10
    assert 0 <= others.min() <= others.max() <= 1
