"""Stage 1: a 2D Faster R-CNN that proposes lesion regions slice by slice (Ren et al., 2015, arXiv 1506.01497)."""

import operator
from collections.abc import Iterable
from functools import reduce

import pytorch_lightning as pl
import torch
from torch import nn

from data.scans.grid import Grid
from data.scans.prepared import PreparedScan
from models.rpn.detector import Detector, head_window
from models.rpn.settings import ANCHOR_SIZES, REFERENCE_SIZE
from models.schedule import optimise
from utils.regions.region import Region, Shape
from utils.regions.rules import ProposalBoxes, regions_of, select_boxes
from utils.scores.proposals import box_scores

DEFAULT_THRESHOLD = 0.5  # of a detection that proposes a region, until calibration finds a better one
# Tells the best epoch. Not the loss: its box regression is summed over matched boxes, so it grows as the network finds
# more lesions; on synthetic scans it was lowest in epoch 0, where lesion coverage was 0.1.
MONITOR = ("val_map_50", "max")
WARMUP_STEPS = 30

Detections = dict[int, dict[str, torch.Tensor]]  # of a volume by slice index, each as of `RPN.detect`


class RPN(pl.LightningModule):
    """Faster R-CNN with one foreground class on slices (C, H, W) in [0, 1]; arguments as of `RPNSettings`, and others:

    Args:
        anchor_sizes: in pixels of a slice with a shorter side of `REFERENCE_SIZE`, one a pyramid level.
        slice_side: shorter side of the training's slices in voxels, which is resized to `image_size`, so that voxels
            of slices of any size are enlarged alike; None for that of each slice.
    """

    grid: Grid | None = None  # of a checkpoint
    contrast: str | None = None  # of its training scans, one of `CONTRASTS`; None where that is unknown

    def __init__(
        self,
        in_channels: int = 1,
        anchor_sizes: tuple[float, ...] = ANCHOR_SIZES["ATLAS"],
        image_size: int = REFERENCE_SIZE,
        slice_side: int | None = None,
        consistency: str = "linked",
        score_threshold: float = DEFAULT_THRESHOLD,
        lr: float = 1e-4,
        eps: float = 1e-8,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-4,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="backbone_weights")
        self.detector = Detector(in_channels, anchor_sizes, image_size, slice_side, backbone_weights)
        self.val_slices: list[tuple[dict, dict]] = []  # detections and targets

    def training_step(self, batch, batch_index):
        images, targets = batch
        return self._log_losses("train", self.detector(images, targets), len(images))

    def validation_step(self, batch, batch_index):
        images, targets = batch
        self._log_losses("val", self.validation_losses(images, targets), len(images))
        detections = [_to_cpu(each) for each in self.detector(images)]
        true = [_to_cpu({key: target[key] for key in ("boxes", "labels")}) for target in targets]
        self.val_slices += zip(detections, true, strict=True)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the boxes; of several processes the mean over those whose slices hold a lesion."""
        detections, targets = zip(*self.val_slices, strict=True) if self.val_slices else ((), ())
        confident = [each["boxes"][each["scores"] >= DEFAULT_THRESHOLD].numpy() for each in detections]
        scores = box_scores(list(detections), list(targets), confident)
        values = torch.tensor(list(scores.values()), device=self.device)
        own = torch.stack([values.nan_to_num(), values.isfinite().float()])
        sums, known = self.trainer.strategy.reduce(own, reduce_op="sum")
        self.log_dict({f"val_{name}": mean for name, mean in zip(scores, sums / known, strict=True)}, sync_dist=True)
        self.val_slices = []

    @torch.no_grad()
    def validation_losses(self, images: list[torch.Tensor], targets: list[dict]) -> dict[str, torch.Tensor]:
        """Losses that change nothing: torchvision gives them in training mode alone, so batch norms stay in evaluation
        mode and anchors are sampled from a random stream of their own, the same each time."""
        self.detector.train()
        for module in self.detector.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            losses = self.detector(images, targets)
        self.detector.eval()
        return losses

    def _log_losses(self, stage: str, losses: dict[str, torch.Tensor], n_images: int) -> torch.Tensor:
        total = reduce(operator.add, losses.values())
        named = {f"{stage}_loss": total, **{f"{stage}_{name}": value for name, value in losses.items()}}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=n_images, sync_dist=True)
        return total

    def configure_optimizers(self):
        lr = self.hparams["lr"]
        return optimise(self, WARMUP_STEPS, lr / 10, lr, lr / 100)

    @torch.inference_mode()
    def detect(self, slices: Iterable[torch.Tensor], batch_size: int = 32) -> list[dict[str, torch.Tensor]]:
        """Detections of slices (C, H, W) float32 in [0, 1] of one shape, on the CPU and best first: for each slice
        ``boxes`` (N, 4) xyxy in voxels, ``scores`` (N,) in [0, 1] and ``labels`` (N,)."""
        self.eval()
        slices, detections = list(slices), []
        window = head_window(slices) if slices else None  # one for all, so that batches do not change the detections
        for start in range(0, len(slices), batch_size):
            batch = [each.to(self.device) for each in slices[start : start + batch_size]]
            detections += [_to_cpu(each) for each in self.detector(batch, window=window)]
        return detections

    def detect_volume(self, prepared: PreparedScan, batch_size: int = 32) -> Detections:
        """`detect` on every slice with brain."""
        slices = prepared.slices()
        return dict(zip(slices, self.detect(map(torch.from_numpy, slices.values()), batch_size), strict=True))

    def regions(self, prepared: PreparedScan, roi_size: Shape) -> list[Region]:
        return self.propose(prepared, self.detect_volume(prepared), roi_size)

    def propose(
        self, prepared: PreparedScan, detections: Detections, roi_size: Shape, threshold: float | None = None
    ) -> list[Region]:
        """The volume's regions, made consistent over slices, at the threshold (None for the model's own)."""
        boxes = self.keep(detections, threshold)
        return regions_of(boxes, prepared.brain, roi_size, self.hparams["consistency"])

    def keep(self, detections: Detections, threshold: float | None = None) -> ProposalBoxes:
        """The boxes of a volume that propose its regions; arguments as for `propose`."""
        threshold = self.hparams["score_threshold"] if threshold is None else threshold
        return select_boxes([detections], threshold, self.hparams["consistency"])


def _to_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Detached, and in float32 where they came in half precision."""
    return {name: (t.float() if t.is_floating_point() else t).detach().cpu() for name, t in tensors.items()}
