"""Runs `CASES`, all or those named, of what networks do on a simulated GPU, and prints what went wrong as JSON."""

import json
import sys
import traceback
from types import SimpleNamespace

import numpy as np
import pytorch_lightning as pl
import torch

from tests.simulated_gpu import CALLS, plug_in

GPU = plug_in()  # before the project's functions ask torch for `inference_mode`

# ruff: noqa: E402
from data.batches.datamodules import RPNDataModule, SegmentationDataModule, TrainingData
from data.batches.transforms import augment
from data.settings import TRANSFORMS, Loading
from models.ensembles import RPNEnsemble, StrokeFormerEnsemble
from models.evaluation.explanations import find_layers, gradcam
from models.pipeline import TwoStage
from models.precision import use_precision
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer
from models.segmentation.settings import LOSS_CONFIG, NETWORKS, SlidingWindow
from models.training.rpn import choose_threshold, coverage_curve
from models.training.strokeformer import choose_decision, decision_table
from tests import drawn
from utils.regions.region import Region

LAYERS = {"trans_unet": "decoders.0", "unetr": "decoder5", "swin_unetr": "decoder5"}
LOSSES = ["DiceCELoss", "CCDiceCELoss", "ICILoss", "DiceFocalLoss", "GeneralizedDiceFocalLoss", "TverskyLoss"]


def put(batch):
    """A batch on the GPU, as Lightning puts it there."""
    if isinstance(batch, torch.Tensor):
        return batch.to(GPU)
    if isinstance(batch, dict):
        return {name: put(value) for name, value in batch.items()}
    return [put(value) for value in batch]


def scan(shape: tuple[int, int, int]):
    values = np.random.default_rng(0).random((1, *shape)).astype(np.float16)
    mask = np.zeros(shape, bool)
    mask[shape[0] // 2, 4:9, 4:9] = True
    return drawn.prepared("a.npy", values, np.ones(shape, bool), mask)


def on_gpu(model: pl.LightningModule) -> pl.LightningModule:
    """A network on the GPU, in a training without a trainer."""
    reduced = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor)
    model._trainer = SimpleNamespace(strategy=reduced)
    return model.to(GPU)


def learn(model: pl.LightningModule, batch) -> None:
    """A step of the optimiser, a validation step and the end of its epoch."""
    optimiser = torch.optim.AdamW(model.parameters())
    model.train().training_step(put(batch), 0).backward()
    optimiser.step()
    model.eval()
    with torch.no_grad():
        model.validation_step(put(batch), 0)
        model.on_validation_epoch_end()


def windows(shape: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    mask, image = torch.zeros(2, 1, *shape), torch.rand(2, 1, *shape)
    mask[0, :, 1:3, 1:3, 1:3] = mask[0, :, 5:7, 5:7, 5:7] = 1  # two lesions
    return {"image": image, "mask": mask, "region": torch.ones_like(mask), "has_lesion": torch.tensor([1.0, 0.0])}


def segmenter(arch: str, loss: str = "DiceCELoss") -> StrokeFormer:
    side = NETWORKS[arch].stride
    config = {} if loss in ("CCDiceCELoss", "ICILoss") else LOSS_CONFIG
    how = {"seg_loss_cfg": config, "seg_loss": loss, "cls_loss": "BCEWithLogitsLoss"}
    return on_gpu(StrokeFormer(arch=arch, roi_size=(side, side, 2 * side), **how))


def segmentation(arch: str) -> None:
    model = segmenter(arch)
    learn(model, windows(model.window))
    volume = scan(model.window)
    assert model.segment(volume, None)[1].any()
    assert gradcam(model, volume, None, find_layers(model, [LAYERS[arch]])).shape == model.window


def ensemble() -> None:
    members, (d, h, w) = (segmenter("trans_unet"), segmenter("trans_unet")), (8, 8, 16)
    volume, regions = scan((d + 2, h + 2, w + 2)), [Region(1, d + 1, 1, 1, w + 1, h + 1)]
    members[0].segment_mirrored(volume, regions, SlidingWindow(), 2)
    pipeline = TwoStage(StrokeFormerEnsemble(members), lambda scan: regions, SlidingWindow(flip_average=True))
    choose_decision(decision_table([(pipeline.predict(volume), volume.mask)]))


def augmentation() -> None:
    batch = windows((8, 8, 16))
    for module, of in (
        (RPNDataModule, {name: batch[name][:, :, 2] for name in ("image", "mask")}),
        (SegmentationDataModule, batch),
    ):
        data = module.__new__(module)
        TrainingData.__init__(data, Loading(), TRANSFORMS, 0)
        data.trainer = SimpleNamespace(training=True)
        for epoch in range(4):
            data.on_after_batch_transfer({**put(of), "key": [(epoch, 0), (epoch, 1)]}, 0)


def many_windows() -> None:
    """They are augmented in as many operations as few, each of which a GPU takes its time for (docs/gpu.md)."""
    counts = []
    for n in (8, 32):
        mask = torch.zeros(n, 2, 8, 8, 16, dtype=torch.uint8)
        mask[:, 0, 2:4, 2:4, 2:4] = 1
        before, generators = CALLS.total(), [np.random.default_rng(i) for i in range(n)]
        augment(
            ["flip", "affine", "contrast", "lesion_contrast"], put(torch.rand(n, 1, 8, 8, 16)), put(mask), generators
        )
        counts.append(CALLS.total() - before)
    assert counts[0] == counts[1], counts


def proposals() -> None:
    model = on_gpu(RPN(image_size=64))
    images = [torch.rand(1, 32, 40) for _ in range(2)]
    boxes = {"boxes": torch.tensor([[4.0, 4, 12, 12]]), "labels": torch.tensor([1])}
    learn(model, [images, [boxes, {**boxes, "boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]])
    volume = scan((4, 32, 40))
    choose_threshold(coverage_curve(model, [volume], (4, 8, 8)), 0.5)
    RPNEnsemble((model, model)).regions(volume, (4, 8, 8))


CASES = {f"loss {loss}": lambda loss=loss: learn(segmenter("trans_unet", loss), windows((8, 8, 16))) for loss in LOSSES}
CASES |= {f"network {arch}": lambda arch=arch: segmentation(arch) for arch in NETWORKS}
CASES |= {"augmentation": augmentation, "many windows": many_windows, "ensemble": ensemble, "stage 1": proposals}


def main() -> None:
    use_precision("32-true")
    pl.LightningModule.log_dict = lambda *_, **__: None
    wrong = {}
    for name in sys.argv[1:] or CASES:
        torch.manual_seed(0)
        try:
            CASES[name]()
        except Exception:  # all that can go wrong is to be told
            wrong[name] = traceback.format_exc()
    json.dump(wrong, sys.stdout)


if __name__ == "__main__":
    main()
