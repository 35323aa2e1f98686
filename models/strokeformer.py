"""Stage 2: a MONAI 3D transformer that segments the proposed regions and nothing else."""

from collections.abc import Callable

import numpy as np
import pytorch_lightning as pl
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from data.prepared import PreparedScan
from models.defaults import LOSS_CONFIG
from models.losses import build_classification_loss, build_loss, mask_outside
from models.schedule import optimise
from models.segmenters import build_segmenter
from utils.overlap import overlap_scores
from utils.regions.region import Region, expand_region, region_mask, region_of, whole_volume

DEFAULT_OVERLAP = 0.25  # MONAI's own default


class StrokeFormer(pl.LightningModule):
    """Segmentation of windows of `roi_size` and, through `segment`, of volumes.

    Args:
        arch: key of `models.segmenters.STRIDES`.
        roi_size: (D, H, W) of a window in voxels.
        opt_lr, warmup_lr, max_lr, warmup_steps: the rate rises linearly from `warmup_lr` to `max_lr` over
            `warmup_steps` steps and decays polynomially to `opt_lr` at the last.
        seg_loss, seg_loss_cfg: a MONAI loss by name and its arguments.
        cls_loss: a torch loss by name on "does this region hold a lesion", or None for none.
        cls_loss_weight, seg_loss_weight: weights of the two losses where both are used.
    """

    def __init__(
        self,
        arch: str = "trans_unet",
        in_channels: int = 1,
        num_classes: int = 2,
        roi_size: tuple[int, int, int] = (64, 64, 64),
        opt_lr: float = 3e-5,
        warmup_lr: float = 4e-6,
        max_lr: float = 4e-4,
        warmup_steps: int = 10,
        weight_decay: float = 1e-3,
        eps: float = 1e-8,
        betas: tuple[float, float] = (0.9, 0.999),
        seg_loss: str = "DiceCELoss",
        seg_loss_cfg: dict | None = None,
        cls_loss: str | None = None,
        cls_loss_weight: float = 0.5,
        seg_loss_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = build_segmenter(arch, in_channels, num_classes, tuple(roi_size))
        self.seg_loss = build_loss(seg_loss, seg_loss_cfg or LOSS_CONFIG)
        self.cls_loss = build_classification_loss(cls_loss) if cls_loss else None
        self.classifier = nn.Linear(2 * num_classes, 1) if cls_loss else None
        self.val_counts = torch.zeros(4, dtype=torch.int64)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes, D, H, W) of windows (B, C, D, H, W) in [0, 1]."""
        return self.net(image)

    # --- training ------------------------------------------------------------------------------------

    def training_step(self, batch, batch_index):
        return self._losses("train", batch)[0]

    def validation_step(self, batch, batch_index):
        _, logits = self._losses("val", batch)
        self._count(logits, batch)

    def _losses(self, stage: str, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self(batch["image"])
        seg_loss = self.seg_loss(*mask_outside(logits, batch["mask"].long(), batch["region"]))
        losses = {"loss": seg_loss}
        if self.cls_loss is not None:
            cls_loss = self.cls_loss(self.classify(logits), batch["has_lesion"])
            total = self.hparams.seg_loss_weight * seg_loss + self.hparams.cls_loss_weight * cls_loss
            losses = {"loss": total, "seg_loss": seg_loss, "cls_loss": cls_loss}
        self.log_dict(
            {f"{stage}_{name}": value for name, value in losses.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(logits),
        )
        return losses["loss"], logits

    def classify(self, logits: torch.Tensor) -> torch.Tensor:
        """Logit (B,) of "this region holds a lesion", from the mean and the largest logit of each class."""
        voxels = logits.flatten(2)
        return self.classifier(torch.cat([voxels.mean(2), voxels.amax(2)], dim=1))[:, 0]

    def _count(self, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        inside = batch["region"][:, 0] > 0
        predicted, target = (logits.argmax(1) > 0) & inside, (batch["mask"][:, 0] > 0) & inside
        counts = [(predicted & target), (predicted & ~target), (~predicted & target), (~predicted & ~target & inside)]
        self.val_counts += torch.stack([c.sum() for c in counts]).cpu()

    def on_validation_epoch_end(self) -> None:
        """Log the overlap over all validation windows, voxels pooled."""
        scores = overlap_scores(*self.val_counts.tolist())
        self.log_dict({f"val_{name}": float(scores[name]) for name in ("dice", "precision", "recall")})
        self.val_counts.zero_()

    def configure_optimizers(self):
        hp = self.hparams
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=hp.max_lr, eps=hp.eps, betas=tuple(hp.betas), weight_decay=hp.weight_decay
        )
        total = int(self.trainer.estimated_stepping_batches)
        return optimise(optimizer, total, hp.warmup_steps, hp.warmup_lr, hp.max_lr, hp.opt_lr)

    # --- inference -----------------------------------------------------------------------------------

    @torch.inference_mode()
    def segment(
        self,
        prepared: PreparedScan,
        regions: list[Region] | None,
        overlap: float | None = None,
        subvolume_depth: int | None = None,
        batch_size: int = 4,
    ) -> np.ndarray:
        """Class probabilities of a scan: background with certainty outside the brain and the regions.

        Args:
            regions: regions of the scan's grid; None for the whole volume.
            overlap: of neighbouring windows; None for `DEFAULT_OVERLAP`.
            subvolume_depth: slices segmented at a time; None for all.
            batch_size: windows at a time.

        Returns:
            (num_classes, D, H, W) float32; windows and regions that overlap are averaged.
        """
        self.eval()
        shape, roi_size = prepared.brain.shape, self.hparams.roi_size
        regions = [whole_volume(shape)] if regions is None else regions
        regions = split_by_depth(regions, shape, subvolume_depth, roi_size)
        probabilities = average_over_regions(
            lambda windows: self(windows).softmax(1),
            prepared.scan,
            regions,
            roi_size,
            self.hparams.num_classes,
            DEFAULT_OVERLAP if overlap is None else overlap,
            batch_size,
            self.device,
        )
        outside = ~(region_mask(regions, shape) & prepared.brain)
        probabilities[:, outside] = 0
        probabilities[0][outside] = 1
        return probabilities


def split_by_depth(
    regions: list[Region],
    shape: tuple[int, int, int],
    subvolume_depth: int | None,
    roi_size: tuple[int, int, int],
) -> list[Region]:
    """Cut the regions at the borders of sub-volumes of `subvolume_depth` slices; pieces grow back to the RoI."""
    depth = min(subvolume_depth or shape[0], shape[0])
    pieces = []
    for start in range(0, shape[0], depth):
        for region in regions:
            d, y, x = region.slices
            piece = slice(max(d.start, start), min(d.stop, start + depth))
            if piece.start < piece.stop:
                pieces.append(expand_region(region_of((piece, y, x)), roi_size, shape))
    return list(dict.fromkeys(pieces))


def average_over_regions(
    predict: Callable[[torch.Tensor], torch.Tensor],
    scan: np.ndarray,
    regions: list[Region],
    roi_size: tuple[int, int, int],
    channels: int,
    overlap: float,
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """Run `predict` by sliding window in each region and average where windows or regions overlap.

    Args:
        predict: from windows (B, C, *roi_size) to maps (B, channels, *roi_size).
        scan: (C, D, H, W) in [0, 1].

    Returns:
        (channels, D, H, W) float32, 0 outside the regions.
    """
    summed = np.zeros((channels, *scan.shape[1:]), np.float32)
    times = np.zeros(scan.shape[1:], np.float32)
    for region in regions:
        image = torch.from_numpy(scan[(slice(None), *region.slices)].astype(np.float32))[None].to(device)
        maps = sliding_window_inference(image, tuple(roi_size), batch_size, predict, overlap, mode="gaussian")
        summed[(slice(None), *region.slices)] += maps[0].float().cpu().numpy()
        times[region.slices] += 1
    return np.divide(summed, times, out=summed, where=times > 0)
