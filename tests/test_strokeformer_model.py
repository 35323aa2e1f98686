"""Stage 2: networks, masked loss, schedule, and segmentation of regions and nothing else."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from models.checkpoints import CHECKPOINT_VERSION, load_model
from models.evaluation.explanations import find_layers, gradcam
from models.schedule import learning_rate
from models.segmentation.losses import build_classification_loss, build_loss, mask_outside
from models.segmentation.module import StrokeFormer, build_segmenter
from models.segmentation.settings import LOSS_CONFIG, NETWORKS, SegmenterSettings, SlidingWindow
from tests import drawn
from utils.errors import UserError
from utils.regions.region import Region, region_mask
from utils.settings import arguments

ROI = (16, 16, 16)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return StrokeFormer(roi_size=ROI).eval()


def prepared(shape=(20, 24, 28)):
    scan = np.random.default_rng(0).random((1, *shape)).astype(np.float16)
    return drawn.prepared("a.npy", scan, np.ones(shape, bool), np.zeros(shape, bool))


# --- networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "roi_size", "channels", "classes"),
    [
        ("trans_unet", (16, 24, 32), 1, 2),
        ("trans_unet", (8, 8, 16), 2, 3),
        ("unetr", (16, 16, 32), 2, 3),
        ("swin_unetr", (32, 32, 64), 2, 3),
    ],
)
def test_every_network_keeps_the_window_and_learns_everywhere(arch, roi_size, channels, classes):
    torch.manual_seed(0)
    net = build_segmenter(arch, channels, classes, roi_size)
    logits = net(torch.rand(2, channels, *roi_size))
    assert logits.shape == (2, classes, *roi_size)
    logits.square().mean().backward()
    # MONAI's transformer blocks carry a norm for cross-attention that self-attention does not use.
    idle = [n for n, p in net.named_parameters() if p.grad is None and "norm_cross_attn" not in n]
    assert not idle


@pytest.mark.parametrize("arch", NETWORKS)
def test_roi_that_does_not_fit_a_network_is_refused(arch):
    stride = NETWORKS[arch].stride
    for roi_size in ((stride,) * 3, (stride + 4, 64, 64)):
        with pytest.raises(UserError, match=f"--window_size, else --roi_size.* --arch {arch};"):
            build_segmenter(arch, 1, 2, roi_size)


def test_command_line_offers_every_network():
    (arch,) = (argument for argument in arguments(SegmenterSettings()) if argument.name == "arch")
    assert list(NETWORKS) == list(arch.option.more["choices"])


def test_transformer_can_be_replaced_by_the_identity():
    """What an ablation does (no argument of any script)."""
    net = build_segmenter("trans_unet", 1, 2, (32, 32, 32))
    with_transformer = [module for module in net.modules() if hasattr(module, "transformer")]
    for module in with_transformer:
        module.transformer = torch.nn.Identity()
    assert with_transformer and net(torch.rand(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)


def test_checkpoint_of_a_training_with_what_is_no_more_is_refused_in_one_line(model, tmp_path):
    held = {"arch": "trans_unet", "in_channels": 1, "num_classes": 2, "roi_size": ROI, "gradient_clip": 1.0}
    old = {
        "model": "StrokeFormer",
        "version": CHECKPOINT_VERSION,
        "hyper_parameters": held,
        "state_dict": model.state_dict(),
    }
    torch.save(old, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"does not fit this version .*'gradient_clip'\); train it anew") as error:
        load_model(StrokeFormer, tmp_path / "best.ckpt")
    assert "\n" not in str(error.value)


# --- losses --------------------------------------------------------------------------------------------


def test_masked_loss_does_not_see_outside_the_regions():
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 4, 4, 4, requires_grad=True)
    labels, region = torch.randint(0, 2, (2, 1, 4, 4, 4)), torch.zeros(2, 1, 4, 4, 4)
    region[:, :, :2] = 1
    loss = build_loss("DiceCELoss", LOSS_CONFIG)
    value = loss(*mask_outside(logits, labels, region))
    value.backward()
    assert (logits.grad[:, :, :2] != 0).all() and (logits.grad[:, :, 2:] == 0).all()
    other_labels = labels.clone()
    other_labels[:, :, 2:] = 1 - other_labels[:, :, 2:]
    torch.testing.assert_close(loss(*mask_outside(logits, other_labels, region)), value)


def test_voxels_outside_add_nothing_to_the_loss():
    logits, labels = torch.randn(1, 2, 4, 4, 4), torch.randint(0, 2, (1, 1, 4, 4, 4))
    nowhere = torch.zeros(1, 1, 4, 4, 4)
    cross_entropy = torch.nn.functional.cross_entropy
    masked_logits, masked_labels = mask_outside(logits, labels, nowhere)
    assert cross_entropy(masked_logits, masked_labels[:, 0]) < 1e-8


def test_inside_the_regions_nothing_changes():
    logits, labels = torch.randn(1, 2, 4, 4, 4), torch.randint(0, 2, (1, 1, 4, 4, 4))
    masked = mask_outside(logits, labels, torch.ones(1, 1, 4, 4, 4))
    assert torch.equal(masked[0], logits) and torch.equal(masked[1], labels)


@pytest.mark.parametrize("name", ["DiceCELoss", "DiceFocalLoss", "TverskyLoss", "GeneralizedDiceLoss"])
def test_monai_losses_are_built_by_name(name):
    config = {"softmax": True, "to_onehot_y": True}
    loss = build_loss(name, config)(torch.randn(1, 2, 4, 4, 4), torch.randint(0, 2, (1, 1, 4, 4, 4)))
    assert torch.isfinite(loss)


def test_unknown_losses_and_arguments_are_refused():
    with pytest.raises(UserError, match="--seg_loss NoLoss"):
        build_loss("NoLoss", {})
    with pytest.raises(UserError, match="--seg_loss_cfg does not fit DiceCELoss"):
        build_loss("DiceCELoss", {"no_such_argument": 1})
    with pytest.raises(UserError, match="--cls_loss Linear"):
        build_classification_loss("Linear")


def test_classification_loss_reaches_the_network():
    model = StrokeFormer(roi_size=ROI, cls_loss="BCEWithLogitsLoss")
    logits = model(torch.rand(2, 1, *ROI))
    assert model.classify(logits).shape == (2,)
    model.cls_loss(model.classify(logits), torch.tensor([0.0, 1.0])).backward()
    assert model.classifier.weight.grad.abs().sum() > 0 and model.net.head.weight.grad.abs().sum() > 0


# --- schedule ------------------------------------------------------------------------------------------


def test_rate_rises_linearly_then_decays_to_its_end():
    rates = [learning_rate(step, 110, 10, 1e-6, 1e-3, 1e-5) for step in range(111)]
    assert rates[0] == 1e-6 and rates[10] == 1e-3 and rates[110] == pytest.approx(1e-5)
    assert rates[5] == pytest.approx((1e-6 + 1e-3) / 2)
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[60] == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.5**0.9)


@pytest.mark.parametrize(
    ("arch", "window"),
    [
        ("trans_unet", (16, 16, 16)),
        ("trans_unet", (24, 24, 24)),
        ("unetr", (32, 32, 32)),
    ],
)
def test_gradients_are_those_of_single_precision_up_to_rounding(arch, window):
    """Whatever the hardware: a map two voxels deep got gradients from memory that nobody had written to."""
    batch = {"image": torch.rand(1, 1, *window), "mask": torch.ones(1, 1, *window)}
    batch |= {"region": batch["mask"]}

    def gradients(single):
        torch.manual_seed(0)
        model = StrokeFormer(arch=arch, roi_size=window)
        model.log_dict = lambda *args, **kwargs: None
        if single:
            model.half_precision = model.forward
        model.training_step(batch, 0).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    found, expected = gradients(single=False), gradients(single=True)
    assert torch.linalg.vector_norm(found - expected) < 0.1 * torch.linalg.vector_norm(expected)


def test_gradient_is_clipped_to_its_limit(monkeypatch, tmp_path):
    monkeypatch.setattr("models.segmentation.module.GRADIENT_CLIP", 1e-3)
    norms = []

    class Norm(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))

    torch.manual_seed(0)
    batch = {"image": torch.rand(2, 1, *ROI), "mask": torch.ones(2, 1, *ROI), "region": torch.ones(2, 1, *ROI)}
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        fast_dev_run=True,
        callbacks=[Norm()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(StrokeFormer(roi_size=ROI), torch.utils.data.DataLoader([batch], batch_size=None))
    assert norms[0].item() == pytest.approx(1e-3, rel=1e-3)


# --- segmentation --------------------------------------------------------------------------------------


def test_outside_the_regions_the_prediction_is_certain_background(model):
    regions = [Region(0, 16, 0, 0, 16, 16), Region(4, 20, 12, 8, 28, 24)]
    probabilities = model.segment(prepared(), regions)
    inside = region_mask(regions, (20, 24, 28))
    assert probabilities.shape == (2, 20, 24, 28)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    assert (probabilities[0][~inside] == 1).all() and (probabilities[0][inside] < 1).all()


def test_outside_the_brain_the_prediction_is_certain_background(model):
    scan = prepared()
    scan.brain[:, :12] = False
    probabilities = model.segment(scan, None)
    assert (probabilities[0, :, :12] == 1).all() and (probabilities[1, :, :12] == 0).all()
    assert (probabilities[1, :, 12:] > 0).all()


def test_scan_without_regions_is_background(model):
    assert (model.segment(prepared(), [])[0] == 1).all()


def test_regions_of_none_mean_the_whole_volume(model):
    assert (model.segment(prepared(), None)[0] < 1).all()


def test_region_of_one_window_gets_the_networks_own_answer(model):
    scan, region = prepared(), Region(2, 18, 3, 4, 19, 20)
    window = torch.from_numpy(scan.scan[(slice(None), *region.slices)].astype(np.float32))[None]
    with torch.inference_mode():
        expected = model.probabilities(window)[0].numpy()
    found = model.segment(scan, [region], SlidingWindow(overlap=0.0))[(slice(None), *region.slices)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_batches_and_subvolumes_of_any_size_give_one_answer(model):
    scan, regions = prepared((32, 24, 28)), [Region(0, 32, 0, 0, 28, 16), Region(8, 24, 4, 2, 24, 20)]
    reference = model.segment(scan, regions, batch_size=1)
    np.testing.assert_allclose(model.segment(scan, regions, batch_size=5), reference, atol=0.01)  # bfloat16
    halves = model.segment(scan, regions, SlidingWindow(subvolume_depth=16))
    assert np.array_equal(halves[0] == 1, reference[0] == 1)


def test_half_precision_stays_close_to_single(model, monkeypatch):
    found = model.segment(prepared(), None)
    monkeypatch.setattr("models.precision.has_bfloat16", lambda device: False)
    np.testing.assert_allclose(found, model.segment(prepared(), None), atol=0.02)


def test_flip_averaged_answers_mirror_those_of_the_mirrored_scan(model):
    scan = prepared(ROI)
    mirrored = drawn.prepared("b.npy", scan.scan[:, :, ::-1], scan.brain, scan.mask)
    averaged = SlidingWindow(flip_average=True)
    found, plain = (model.segment(scan, None, sliding) for sliding in (averaged, SlidingWindow()))
    np.testing.assert_allclose(model.segment(mirrored, None, averaged)[:, :, ::-1], found, atol=0.01)
    assert not np.allclose(found, plain, atol=0.01)


def test_a_window_larger_than_its_region_sees_what_lies_around_and_changes_nothing_there():
    torch.manual_seed(0)
    model, region = StrokeFormer(roi_size=(8, 8, 8), window_size=ROI), Region(8, 16, 8, 8, 16, 16)
    scan = prepared((24, 24, 24))
    other = drawn.prepared("b.npy", scan.scan.copy(), scan.brain, scan.mask)
    other.scan[:, 7, 7, 7] = 1 - scan.scan[:, 7, 7, 7]
    found, changed = (model.segment(s, [region]) for s in (scan, other))
    assert (found[1][region.slices] != changed[1][region.slices]).any()
    inside = region_mask([region], scan.brain.shape)
    assert (found[0] == 1)[~inside].all() and (found[0] < 1)[inside].all()


def test_volume_smaller_than_the_window_is_segmented(model):
    assert model.segment(prepared((10, 24, 12)), None).shape == (2, 10, 24, 12)


# --- Grad-CAM ------------------------------------------------------------------------------------------


def test_gradcam_stays_inside_the_regions_and_the_unit_interval(model):
    regions = [Region(0, 16, 0, 0, 16, 16)]
    heat = gradcam(model, prepared(), regions, find_layers(model, ["decoders.1"]), SlidingWindow(overlap=0.25))
    assert heat.shape == (20, 24, 28) and heat.min() >= 0 and heat.max() <= 1
    assert heat.any() and not heat[~region_mask(regions, heat.shape)].any()


def test_gradcam_points_at_what_drives_the_lesion_logit():
    """A network whose lesion logit is its input: the heat must sit on the one bright block."""
    model = StrokeFormer(roi_size=ROI)
    model.net = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.Conv3d(2, 2, 1))
    with torch.no_grad():
        for conv in model.net:
            conv.bias.zero_()
        model.net[0].weight.copy_(torch.tensor([-9.0, 9.0]).reshape(2, 1, 1, 1, 1))
        model.net[1].weight.copy_(torch.eye(2).reshape(2, 2, 1, 1, 1))
    scan = prepared(ROI)
    scan.scan[:] = 0
    scan.scan[0, 2:5, 9:13, 3:6] = 1
    heat = gradcam(model, scan, None, find_layers(model, ["0"]), SlidingWindow(overlap=0.25))
    assert np.unravel_index(heat.argmax(), heat.shape) in [tuple(v) for v in np.argwhere(scan.scan[0] == 1)]
    assert heat[scan.scan[0] == 1].mean() > 0.9 and heat[scan.scan[0] == 0].mean() < 0.1


@pytest.mark.parametrize(
    ("arch", "layers"),
    [
        ("trans_unet", ["encoders.2", "decoders.1"]),
        ("unetr", ["decoder3"]),
    ],
)
def test_gradcam_takes_the_layers_that_the_docs_name(arch, layers):
    model = StrokeFormer(arch=arch, roi_size=(16, 16, 32))
    heat = gradcam(model, prepared((16, 16, 32)), None, find_layers(model, layers))
    assert heat.shape == (16, 16, 32) and heat.min() >= 0 and heat.max() <= 1
