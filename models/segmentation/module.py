"""Stage 2: a MONAI 3D transformer that segments the proposed regions and nothing else."""

from collections.abc import Callable, Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional

from data.batches.context import window_channels
from data.scans.prepared import PreparedScan
from models.defaults import LOSS_CONFIG
from models.precision import autocast
from models.schedule import optimise
from models.segmentation.losses import build_classification_loss, build_loss, mask_outside
from models.segmentation.networks import SEGMENTERS, build_segmenter
from models.segmentation.windows import slide
from models.training.shared_batch import processes, take_share, whole_batch
from utils.regions.region import Region
from utils.scores.decision import Decision
from utils.scores.overlap import overlap_scores

LEFT_RIGHT = 3  # axis of windows (B, C, D, H, W)


class StrokeFormer(pl.LightningModule):
    """Segmentation of windows and, through `segment`, of volumes.

    Args:
        arch, arch_size: keys of `models.segmentation.networks.SEGMENTERS` and of its sizes.
        in_channels: channels of a scan.
        roi_size: smallest (D, H, W) of a proposed region in voxels.
        window_size: (D, H, W) of a window in voxels; None for `roi_size`. A larger one looks beyond small regions.
        opt_lr, warmup_lr, max_lr, warmup_steps: the rate rises linearly from `warmup_lr` to `max_lr` over
            `warmup_steps` steps and decays polynomially to `opt_lr` at the last.
        gradient_clip: largest norm of a step's gradient; 0 for any.
        seg_loss, seg_loss_cfg: a loss by name (`models.segmentation.losses.build_loss`) and its arguments.
        cls_loss: a torch loss by name on "does this region hold a lesion", or None for none.
        cls_loss_weight, seg_loss_weight: weights of the two losses where both are used.
        seg_context: further channels of a window, ``mirror`` and ``position`` (`data.batches.context`).
        deep_supervision: whether the coarser levels of the network learn by a loss of their own.
        lesion_threshold, smallest_lesion_cm3: what is lesion, given its probability (`Decision`).
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
        seg_context: Sequence[str] = (),
        arch_size: str = "small",
        gradient_clip: float = 1.0,
        lesion_threshold: float = 0.5,
        smallest_lesion_cm3: float = 0.0,
        window_size: tuple[int, int, int] | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        channels = window_channels(in_channels, seg_context)
        self.window = tuple(window_size or roi_size)
        self.net = build_segmenter(arch, channels, num_classes, self.window, arch_size, deep_supervision)
        self.narrowest_map = min(self.window) // SEGMENTERS[arch].stride
        self.seg_loss = build_loss(seg_loss, seg_loss_cfg or LOSS_CONFIG)
        self.cls_loss = build_classification_loss(cls_loss) if cls_loss else None
        self.classifier = nn.Linear(2 * num_classes, 1) if cls_loss else None
        self.val_counts = torch.zeros(4, dtype=torch.int64)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes, D, H, W) of windows (B, C, D, H, W), context included."""
        return self.net(image.to(self.dtype))

    def half_precision(self, image: torch.Tensor) -> torch.Tensor:
        """The logits in the precision of the weights, computed in half precision where that is asked for or the
        hardware has bfloat16: twice as many steps a minute."""
        with autocast(self.device, self.narrowest_map):
            return self(image).to(self.dtype)

    def levels(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The logits of `half_precision` and, in training with deep supervision, those of the network's coarser levels;
        finest first, (B, num_classes, D, H, W) all, interpolated where they are coarser."""
        if not (self.training and self.hparams.deep_supervision):
            return [self.half_precision(image)]
        with autocast(self.device, self.narrowest_map):
            levels = [logits.to(self.dtype) for logits in self.net(image.to(self.dtype), all_levels=True)]
        return [levels[0], *(functional.interpolate(each, self.window, mode="trilinear") for each in levels[1:])]

    # --- training ------------------------------------------------------------------------------------

    def training_step(self, batch, batch_index):
        return self._loss("train", self._found(batch, batch_index)) * processes()

    def validation_step(self, batch, batch_index):
        found = self._found(batch, batch_index)
        self._loss("val", found)
        self._count(found["logits"], found)

    def _found(self, batch: dict[str, torch.Tensor], batch_index: int) -> dict[str, torch.Tensor]:
        """What the network says of a batch, ``logits``, those of coarser levels (``logits_1``, ...) and ``presence``,
        beside what is true of it."""
        share = take_share(self, batch_index, len(batch["image"]))
        logits, *coarser = self.levels(batch["image"])
        found = {"mask": batch["mask"], "region": batch["region"], "logits": logits}
        found |= {f"logits_{level}": each for level, each in enumerate(coarser, 1)}
        if self.cls_loss is not None:
            found |= {"has_lesion": batch["has_lesion"], "presence": self.classify(logits)}
        return whole_batch(share, found)

    def _segmentation_loss(self, found: dict[str, torch.Tensor]) -> torch.Tensor:
        """The segmentation loss: of the logits alone, or the mean over levels, each of half the weight of the finer one
        before it (deep supervision, Lee et al., 2015, arXiv 1409.5185, with the weights of nnU-Net)."""
        levels = [logits for name, logits in found.items() if name.startswith("logits")]
        weights = [0.5**level for level in range(len(levels))]
        mask, region = found["mask"].long(), found["region"]
        losses = [w * self.seg_loss(*mask_outside(each, mask, region)) for w, each in zip(weights, levels, strict=True)]
        return sum(losses) / sum(weights)

    def _loss(self, stage: str, found: dict[str, torch.Tensor]) -> torch.Tensor:
        seg_loss = self._segmentation_loss(found)
        losses = {"loss": seg_loss}
        if self.cls_loss is not None:
            cls_loss = self.cls_loss(found["presence"], found["has_lesion"])
            total = self.hparams.seg_loss_weight * seg_loss + self.hparams.cls_loss_weight * cls_loss
            losses = {"loss": total, "seg_loss": seg_loss, "cls_loss": cls_loss}
        self.log_dict(
            {f"{stage}_{name}": value for name, value in losses.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(found["logits"]),
        )
        return losses["loss"]

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

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Called by Lightning; the limit is the model's own, so that stage 1's trainer has none."""
        self.clip_gradients(optimizer, self.hparams.gradient_clip, "norm")

    # --- inference -----------------------------------------------------------------------------------

    @property
    def decision(self) -> Decision:
        """What the model takes for lesion, given the probabilities of `segment`."""
        return Decision(self.hparams.lesion_threshold, self.hparams.smallest_lesion_cm3)

    @torch.inference_mode()
    def segment(
        self,
        prepared: PreparedScan,
        regions: list[Region] | None,
        overlap: float | None = None,
        subvolume_depth: int | None = None,
        batch_size: int = 4,
        flip_average: bool = False,
    ) -> np.ndarray:
        """Class probabilities of a scan: background with certainty outside the brain and the regions.

        Args:
            regions: regions of the scan's grid; None for the whole volume.
            overlap: of neighbouring windows; None for `models.segmentation.windows.DEFAULT_OVERLAP`.
            subvolume_depth: slices segmented at a time; None for all.
            batch_size: windows at a time.
            flip_average: whether each window is looked at from both sides, left and right exchanged.

        Returns:
            (num_classes, D, H, W) float32; windows that overlap are averaged.
        """
        predict = self.flip_averaged if flip_average else self.probabilities
        return self._segment(predict, prepared, regions, overlap, subvolume_depth, batch_size)

    @torch.inference_mode()
    def segment_mirrored(
        self,
        prepared: PreparedScan,
        regions: list[Region] | None,
        overlap: float | None = None,
        subvolume_depth: int | None = None,
        batch_size: int = 4,
    ) -> np.ndarray:
        """`segment` of the mirror images of all windows, flipped back: the other half of what `flip_average` does."""
        return self._segment(self.mirrored, prepared, regions, overlap, subvolume_depth, batch_size)

    def _segment(self, predict: Callable[[torch.Tensor], torch.Tensor], prepared, regions, *windows) -> np.ndarray:
        self.eval()
        background = [1.0] + [0.0] * (self.hparams.num_classes - 1)
        return self.slide(predict, prepared, regions, background, *windows)

    def flip_averaged(self, windows: torch.Tensor) -> torch.Tensor:
        """The mean of `probabilities` of windows as they are and of their mirror images, flipped back."""
        return (self.probabilities(windows) + self.mirrored(windows)) / 2

    def mirrored(self, windows: torch.Tensor) -> torch.Tensor:
        """`probabilities` of the mirror images of windows, flipped back."""
        return self.probabilities(windows.flip(LEFT_RIGHT)).flip(LEFT_RIGHT)

    def probabilities(self, windows: torch.Tensor) -> torch.Tensor:
        """Class probabilities (B, num_classes, D, H, W) of windows, float32."""
        return self.half_precision(windows).softmax(1)

    def slide(
        self,
        predict: Callable[[torch.Tensor], torch.Tensor],
        prepared: PreparedScan,
        regions: list[Region] | None,
        outside: Sequence[float],
        *windows,
    ) -> np.ndarray:
        """`windows.slide` with what a function of tensors says of the model's windows, on its device.

        Args:
            windows: overlap, sub-volume depth and batch size of `models.segmentation.windows.slide`, as the others are.
        """

        def said(images: np.ndarray) -> np.ndarray:
            return predict(torch.from_numpy(images).to(self.device)).float().cpu().numpy()

        return slide(said, prepared, regions, outside, self.window, self.hparams.seg_context, *windows)
