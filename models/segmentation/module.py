"""Stage 2: a 3D network, of `NETWORKS` by its name, that segments the proposed regions and nothing else."""

import math
from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from data.scans.grid import Grid
from data.scans.prepared import PreparedScan
from models.precision import autocast
from models.schedule import optimise
from models.segmentation.losses import build_classification_loss, build_loss, mask_outside
from models.segmentation.settings import NETWORKS, SegmenterSettings, SlidingWindow
from models.segmentation.windows import slide
from utils.errors import UserError
from utils.regions.region import Region
from utils.scores.masks import Decision, overlap_scores

LEFT_RIGHT = 3  # axis of windows (B, C, D, H, W)
GRADIENT_CLIP = 1.0  # largest norm of a step's gradient: an untrained network's begins at 1.4 and is 0.9 soon after


class StrokeFormer(pl.LightningModule):
    """Segmentation of windows and, through `segment`, of volumes; `settings` are fields of `SegmenterSettings`.

    Of several `members`, which ``calibrate.py`` puts into one checkpoint, the class probabilities are averaged.
    """

    grid: Grid | None = None  # of a checkpoint
    contrast: str | None = None  # of its training scans, one of `CONTRASTS`; None where that is unknown

    def __init__(
        self,
        lesion_threshold: float = 0.5,
        smallest_lesion_cm3: float = 0.0,
        lesion_weights: Sequence[float] = (),
        members: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__()
        hp = SegmenterSettings(**settings)
        decision = {
            "lesion_threshold": lesion_threshold,
            "smallest_lesion_cm3": smallest_lesion_cm3,
            "lesion_weights": list(lesion_weights),
        }
        self.save_hyperparameters({**vars(hp), **decision, "members": members})
        depth, height, width = hp.window_size or hp.roi_size
        self.window = depth, height, width
        networks = [build_segmenter(hp.arch, hp.in_channels, hp.num_classes, self.window) for _ in range(members)]
        self.net = networks[0] if members == 1 else MeanOf(networks)
        self.narrowest_map = min(self.window) // NETWORKS[hp.arch].stride
        self.seg_loss = build_loss(hp.seg_loss, hp.seg_loss_cfg)
        self.cls_loss = build_classification_loss(hp.cls_loss) if hp.cls_loss else None
        if hp.cls_loss:
            self.classifier = nn.Linear(2 * hp.num_classes, 1)
        self.val_counts = torch.zeros(4, dtype=torch.int64)
        self.background = [1.0] + [0.0] * (hp.num_classes - 1)  # class probabilities of what is certainly none

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes, D, H, W) of windows (B, C, D, H, W)."""
        return self.net(image)

    def half_precision(self, image: torch.Tensor) -> torch.Tensor:
        """The logits as float32, computed in the precision of `models.precision`."""
        with autocast(self.device, self.narrowest_map):
            return self(image).float()

    def training_step(self, batch, batch_index):
        return self._log_losses("train", self.half_precision(batch["image"]), batch)

    def validation_step(self, batch, batch_index):
        logits = self.half_precision(batch["image"])
        self._log_losses("val", logits, batch)
        inside = batch["region"][:, 0] > 0
        predicted, target = (logits.argmax(1) > 0) & inside, (batch["mask"][:, 0] > 0) & inside
        counts = [(predicted & target), (predicted & ~target), (~predicted & target), (~predicted & ~target & inside)]
        self.val_counts += torch.stack([c.sum() for c in counts]).cpu()

    def _log_losses(self, stage: str, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log all losses; the one to minimise."""
        loss = self.seg_loss(*mask_outside(logits, batch["mask"].long(), batch["region"]))
        losses = {"loss": loss}
        if self.cls_loss is not None:
            cls_loss = self.cls_loss(self.classify(logits), batch["has_lesion"])
            total = self.hparams["seg_loss_weight"] * loss + self.hparams["cls_loss_weight"] * cls_loss
            losses = {"loss": total, "seg_loss": loss, "cls_loss": cls_loss}
        named = {f"{stage}_{name}": value for name, value in losses.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=len(logits), sync_dist=True)
        return losses["loss"]

    def classify(self, logits: torch.Tensor) -> torch.Tensor:
        """Logit (B,) of "this region holds a lesion", from the mean and the largest logit of each class."""
        voxels = logits.flatten(2)
        return self.classifier(torch.cat([voxels.mean(2), voxels.amax(2)], dim=1))[:, 0]

    def on_validation_epoch_end(self) -> None:
        """Log the overlap over all validation windows, voxels pooled."""
        counts = self.trainer.strategy.reduce(self.val_counts.to(self.device), reduce_op="sum")
        scores = overlap_scores(*counts.tolist())
        self.log_dict({f"val_{name}": float(scores[name]) for name in ("dice", "precision", "recall")}, sync_dist=True)
        self.val_counts.zero_()

    def configure_optimizers(self):
        hp = self.hparams
        return optimise(self, hp["warmup_steps"], hp["warmup_lr"], hp["max_lr"], hp["opt_lr"])

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Called by Lightning; the limit is the model's own, so that stage 1's trainer has none."""
        self.clip_gradients(optimizer, GRADIENT_CLIP, "norm")

    @property
    def decision(self) -> Decision:
        """What is lesion, given the probabilities of `segment`."""
        hp = self.hparams
        return Decision(hp["lesion_threshold"], hp["smallest_lesion_cm3"], tuple(hp["lesion_weights"]))

    @torch.inference_mode()
    def segment(
        self,
        prepared: PreparedScan,
        regions: list[Region] | None,
        sliding: SlidingWindow = SlidingWindow(),
        batch_size: int = 8,
    ) -> np.ndarray:
        """(num_classes, D, H, W) float32 class probabilities of a scan, certain background outside brain and regions,
        which are of the scan's grid; None segments the whole volume."""

        def flip_averaged(windows: torch.Tensor) -> torch.Tensor:
            return (self.probabilities(windows) + self.mirrored(windows)) / 2

        predict = flip_averaged if sliding.flip_average else self.probabilities
        return self.slide(predict, prepared, regions, self.background, sliding, batch_size)

    @torch.inference_mode()
    def segment_mirrored(
        self, prepared: PreparedScan, regions: list[Region] | None, sliding: SlidingWindow, batch_size: int
    ) -> np.ndarray:
        """`segment` of the mirror images of all windows, flipped back: the other half of ``flip_average``."""
        return self.slide(self.mirrored, prepared, regions, self.background, sliding, batch_size)

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
        sliding: SlidingWindow,
        batch_size: int,
    ) -> np.ndarray:
        """`models.segmentation.windows.slide` of a function of tensors, in evaluation mode."""

        def predict_arrays(images: np.ndarray) -> np.ndarray:
            return predict(torch.from_numpy(images).to(self.device)).float().cpu().numpy()

        self.eval()
        return slide(predict_arrays, prepared, regions, outside, self.window, sliding, batch_size)


class MeanOf(nn.Module):
    """Networks whose class probabilities are averaged; its logits are the logarithms of these."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logarithms = torch.stack([network(image).float().log_softmax(1) for network in self.networks])
        return logarithms.logsumexp(0) - math.log(len(self.networks))


def build_segmenter(arch: str, in_channels: int, num_classes: int, window: tuple[int, int, int]) -> nn.Module:
    """A network for windows (D, H, W); a `UserError` where the sides are no multiples of its stride."""
    network = NETWORKS[arch]
    deepest = math.prod(side // network.stride for side in window)
    if any(side % network.stride for side in window) or deepest < 2:  # norms need more than one voxel there
        raise UserError(
            f"windows of {tuple(window)} (--window_size, else --roi_size) do not fit --arch {arch}; use multiples of "
            f"{network.stride}, not all {network.stride}"
        )
    sized = (window,) if network.of_one_window else ()
    built = resolve_name(network.path)(in_channels, num_classes, *sized, **network.arguments)
    # Several devices wait for each gradient, and a cross-attention that MONAI's blocks have but do not use gets none.
    for name, parameter in built.named_parameters():
        parameter.requires_grad_("norm_cross_attn" not in name)
    return built
