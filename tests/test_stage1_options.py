"""What stage 1 can be trained with: context channels, hard negatives, focal loss, smoothed labels, faded lesions."""

import inspect
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.roi_heads import RoIHeads

from data.batches.context import mirrored, network_channels, with_context
from data.batches.datamodules import RPNDataModule, SliceDataset
from data.batches.sampling import balanced_indices, natural_indices
from data.batches.transforms import RandLesionContrastd
from models.rpn.detector import FPN_CHANNELS, build_detector
from models.rpn.hard_negatives import HardNegatives
from models.rpn.module import RPN
from tests.drawn import prepared

ANCHORS = (8.0, 16.0, 32.0, 64.0)


@pytest.fixture
def table(tmp_path):
    """Slices 3 to 10 of one scan, with a lesion in slices 5 and 6."""
    rng, rows = np.random.default_rng(0), []
    for z in range(3, 11):
        scan, mask = rng.uniform(0.2, 1, (1, 32, 40)).astype(np.float16), np.zeros((1, 32, 40), np.uint8)
        mask[0, 8:16, 10:18] = z in (5, 6)
        scan_path, mask_path = tmp_path / f"sub-1_slice-{z:03d}.npy", tmp_path / f"sub-1_mask_slice-{z:03d}.npy"
        np.save(scan_path, scan)
        np.save(mask_path, mask)
        rows.append([str(scan_path), str(mask_path), "sub-1.npy", "1", z, 12, "", scan.size, int(mask.sum())])
    columns = ["scan", "mask", "volume", "subject", "slice", "depth", "spacing_mm", "brain_voxels", "lesion_voxels"]
    return pd.DataFrame(rows, columns=columns)


# --- context -------------------------------------------------------------------------------------------


def test_neighbours_and_mirror_image_follow_the_slice_itself():
    below, image, above = (np.full((2, 4, 6), value, np.float32) for value in (0.1, 0.2, 0.3))
    image[:, 0] = 0.9
    stacked = with_context(image, below, above, ["neighbours", "mirror"])
    assert len(stacked) == network_channels(2, ["neighbours", "mirror"]) == 8
    np.testing.assert_array_equal(stacked, np.concatenate([image, below, above, image[:, ::-1]]))
    assert with_context(image, None, None, []) is not None and len(with_context(image, None, None, [])) == 2
    assert not with_context(image, None, above, ["neighbours"])[2:4].any()


def test_a_symmetric_head_off_the_centre_is_its_own_mirror_image():
    image = np.zeros((1, 20, 5))
    image[0, 3:9, 1:4] = np.array([1, 2, 3, 3, 2, 1])[:, None]
    np.testing.assert_array_equal(mirrored(image), image)
    image[0, 4, 2] = 9  # a lesion shows up at the same distance on the other side
    assert mirrored(image)[0, 7, 2] == 9


@given(arrays(np.float32, (1, 7, 4), elements=st.floats(0, 1, width=16)))
def test_mirrored_twice_is_the_slice_again(image):
    np.testing.assert_array_equal(mirrored(mirrored(image)), image)


def test_training_and_inference_see_the_same_context(table, monkeypatch):
    context = ("neighbours", "mirror")
    dataset = SliceDataset(table, context=context)
    stack = np.zeros((1, 12, 32, 40), np.float16)
    stack[:, table.slice] = np.stack([np.load(path) for path in table.scan], 1)
    stack[:, 11] = 0.5  # noise where there is no brain is nobody's neighbour
    head = np.zeros((12, 32, 40), bool)
    head[3:11] = True
    model, seen = RPN(context=context, image_size=64), []
    monkeypatch.setattr(model, "detect", lambda images, _: [seen.append(image) or {} for image in images])
    model.detect_volume(prepared("sub-1.npy", stack, head, head))
    assert len(seen) == len(dataset) == 8
    for index, image in enumerate(seen):
        np.testing.assert_array_equal(image, dataset[0, index][0])


# --- hard negatives ------------------------------------------------------------------------------------


def test_hard_negatives_are_the_healthy_slices_with_the_surest_detections(table):
    data = RPNDataModule(table, table)
    # The network is surest on the sick slices 2 and 3, which must not be taken, then on slice 7 of the table.
    certainty = dict(enumerate([0.1, 0.2, 0.99, 0.98, 0.3, 0.0, 0.4, 0.9]))
    by_content = {float(data.train.image(i).sum()): score for i, score in certainty.items()}
    detect = lambda images: [{"scores": torch.tensor([by_content[float(i.sum())]])} for i in images]  # noqa: E731
    module = SimpleNamespace(detect=detect, train=lambda: None)
    trainer = SimpleNamespace(current_epoch=0, datamodule=data)
    HardNegatives(0.5).on_train_epoch_start(trainer, module)
    assert len(data.hard) == 0
    for epoch in range(1, 20):
        trainer.current_epoch = epoch
        HardNegatives(0.5).on_train_epoch_start(trainer, module)
        assert len(data.hard) == 1 and not data.sick[data.hard].any()  # half of the two healthy slices of an epoch
    assert certainty[int(data.hard[0])] >= 0.2  # the surest of four out of six


def test_an_epoch_holds_the_hard_negatives_that_were_found_before_it(table, monkeypatch):
    """In a real training, so that a Trainer which draws its slices earlier would be noticed."""
    data, model, visited = RPNDataModule(table, table.iloc[:0], batch_size=4), RPN(image_size=64), []
    monkeypatch.setattr(
        model, "detect", lambda images: [{"scores": torch.tensor([float(k == 0)])} for k, _ in enumerate(images)]
    )
    read, found = SliceDataset.__getitem__, {}
    monkeypatch.setattr(SliceDataset, "__getitem__", lambda self, key: visited.append(key) or read(self, key))

    class Recorder(HardNegatives):
        def on_train_epoch_start(self, trainer, module):
            super().on_train_epoch_start(trainer, module)
            found[trainer.current_epoch] = set(data.hard.tolist())
            assert module.training

    trainer = pl.Trainer(
        max_epochs=3,
        callbacks=[Recorder(0.5)],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    for epoch in range(3):
        items = [index for e, index in visited if e == epoch]
        assert len(items) == len(set(items)) == 4 and found[epoch] <= set(items)
    assert len(found[2]) == 1


@given(arrays(bool, st.integers(2, 30)), st.integers(0, 5))
def test_natural_sampling_takes_as_many_slices_as_balanced_whatever_they_hold(sick, seed):
    hard = np.flatnonzero(~sick)[:1] if sick.any() else np.zeros(0, int)
    chosen = natural_indices(sick, np.random.default_rng(seed), hard)
    assert len(chosen) == len(set(chosen.tolist())) == len(balanced_indices(sick, np.random.default_rng(seed), hard))
    assert set(hard) <= set(chosen)


def test_sick_slices_are_as_rare_in_natural_samples_as_in_the_cohort():
    sick = np.arange(1000) < 100
    share = np.mean([sick[natural_indices(sick, np.random.default_rng(seed))].mean() for seed in range(50)])
    assert share == pytest.approx(0.1, abs=0.01)


# --- losses --------------------------------------------------------------------------------------------


def test_focal_loss_on_anchors_is_the_published_formula():
    torch.manual_seed(0)
    network = build_detector(1, ANCHORS, 64, focal=True).rpn
    objectness = torch.tensor([[2.0], [-1.0], [0.5], [3.0]])
    labels = [torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])]  # the third anchor is not counted
    nothing = torch.zeros(4, 4)
    loss, _ = network.compute_loss(objectness, nothing, labels, [nothing[:2], nothing[:2]])
    p = torch.sigmoid(torch.tensor([2.0, -1.0, 3.0]))
    expected = -0.25 * (1 - p[0]) ** 2 * p[0].log() - sum(0.75 * q**2 * (1 - q).log() for q in p[1:])
    torch.testing.assert_close(loss, expected)


def box_losses(heads, forward=None):
    torch.manual_seed(1)
    features = {str(i): torch.rand(1, FPN_CHANNELS, 16 // 2**i, 16 // 2**i) for i in range(3)}
    proposals = [torch.tensor([[4.0, 4, 20, 20], [30, 30, 50, 60], [0, 0, 10, 10]])]
    target = {"boxes": torch.tensor([[5.0, 5, 21, 21]]), "labels": torch.ones(1, dtype=torch.int64)}
    return (forward or type(heads).forward)(heads, features, proposals, [(64, 64)], [target])[1]


def test_box_losses_without_smoothing_are_torchvisions():
    torch.manual_seed(0)
    heads = build_detector(1, ANCHORS, 64).roi_heads
    assert box_losses(heads) == box_losses(heads, RoIHeads.forward)


def test_smoothing_moves_the_class_loss_towards_that_of_even_labels():
    torch.manual_seed(0)
    heads = build_detector(1, ANCHORS, 64, label_smoothing=0.2).roi_heads
    smoothed = box_losses(heads)["loss_classifier"]
    heads.label_smoothing = 0.0
    hard = box_losses(heads)["loss_classifier"]
    heads.label_smoothing = 1.0
    even = box_losses(heads)["loss_classifier"]
    torch.testing.assert_close(smoothed, 0.8 * hard + 0.2 * even)


def test_matching_by_torchvisions_thresholds_is_torchvisions():
    default = {name: p.default for name, p in inspect.signature(FasterRCNN.__init__).parameters.items()}
    for matching, same in (("torchvision", True), ("small", False)):
        detector = build_detector(1, ANCHORS, 64, matching=matching)
        for part, prefix in ((detector.rpn, "rpn"), (detector.roi_heads, "box")):
            matcher, sampler = part.proposal_matcher, part.fg_bg_sampler
            ours = matcher.high_threshold, matcher.low_threshold, sampler.positive_fraction
            theirs = tuple(default[f"{prefix}_{n}"] for n in ("fg_iou_thresh", "bg_iou_thresh", "positive_fraction"))
            assert (ours == theirs) is same


# --- lesion contrast -----------------------------------------------------------------------------------


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
