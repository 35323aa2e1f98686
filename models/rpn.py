"""Stage 1: a 2D Faster R-CNN that proposes lesion regions slice by slice (Ren et al., 2015, arXiv 1506.01497)."""

from collections.abc import Iterable

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from data.grid import PreparedScan
from models.anchors import ANCHOR_SIZES, ASPECT_RATIOS, REFERENCE_SIZE, anchors_at
from models.consistency import Kept, keep_boxes, regions_of
from models.precision import autocast
from models.schedule import optimise
from utils.errors import UserError
from utils.proposal_metrics import box_scores
from utils.regions import Region

FPN_CHANNELS = 128  # half of torchvision's 256: grey slices with one class need less, and it halves the time
HEAD_CHANNELS = 256
# 1000 proposals a slice, torchvision's default, spend 43 s a volume in the box head; the lesions of a slice
# are found among the best few.
PROPOSALS = {"train": 200, "test": 30}
DETECTIONS_PER_SLICE = 10
# Lesions are few and a pixel more or less changes the IoU of a small box a lot: looser matches and half of the
# sampled boxes positive. On synthetic scans at 3 mm that raised lesion coverage at the threshold of 0.5 from 0.71
# to 0.86 after 230 steps, against torchvision's defaults (one seed, scored on the scans that it was chosen on).
MATCHING = {
    "rpn_fg_iou_thresh": 0.5,
    "rpn_bg_iou_thresh": 0.3,
    "box_fg_iou_thresh": 0.4,
    "box_bg_iou_thresh": 0.4,
    "box_positive_fraction": 0.5,
    "box_batch_size_per_image": 32,
}
MIN_SCORE = 0.01  # detections below are not even returned; the region threshold comes later
DEFAULT_THRESHOLD = 0.5  # of a detection that proposes a region, until calibration finds a better one
# What says which epoch is best. Not the loss: its box regression is summed over the boxes that were matched, so it
# grows as the network finds more lesions, and on synthetic scans the lowest validation loss was that of epoch 0,
# where lesion coverage was 0.1.
MONITOR = ("val_map_50", "max")
WARMUP_STEPS = 30


class RPN(pl.LightningModule):
    """Faster R-CNN with one foreground class on slices (C, H, W) in [0, 1].

    Args:
        in_channels: channels of a slice.
        anchor_sizes: in pixels of a slice whose shorter side is `REFERENCE_SIZE`, one a pyramid level.
        image_size: shorter side, in pixels, to which slices are resized inside; anchors scale with it, so that they
            mean the same share of the head on coarse scans.
        backbone_weights: file with a state dict of torchvision's resnet18.
        consistency: rule by which boxes of slices become regions, ``linked`` or ``grouped`` (`models.consistency`).
        score_threshold: evidence, or score, from which on boxes propose a region.
    """

    def __init__(
        self,
        in_channels: int = 1,
        anchor_sizes: tuple[float, ...] = ANCHOR_SIZES["ATLAS"],
        image_size: int = REFERENCE_SIZE,
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
        self.detector = build_detector(in_channels, anchor_sizes, image_size, backbone_weights)
        self.val_detections: list[dict] = []
        self.val_targets: list[dict] = []

    # --- training ------------------------------------------------------------------------------------

    def training_step(self, batch, batch_index):
        images, targets = batch
        with autocast(self.device):
            losses = self.detector(images, targets)
        return self._log_losses("train", losses, len(images))

    def validation_step(self, batch, batch_index):
        images, targets = batch
        self._log_losses("val", self.validation_losses(images, targets), len(images))
        with autocast(self.device):
            self.val_detections += [_to_cpu(d) for d in self.detector(images)]
        self.val_targets += [_to_cpu({k: t[k] for k in ("boxes", "labels")}) for t in targets]

    def on_validation_epoch_end(self) -> None:
        kept = [found["boxes"][found["scores"] >= DEFAULT_THRESHOLD].numpy() for found in self.val_detections]
        scores = box_scores(self.val_detections, self.val_targets, kept)
        self.log_dict({f"val_{name}": value for name, value in scores.items()})
        self.val_detections, self.val_targets = [], []

    @torch.no_grad()
    def validation_losses(self, images: list[torch.Tensor], targets: list[dict]) -> dict[str, torch.Tensor]:
        """Losses without a trace: torchvision gives them in training mode alone, so the batch norms are held in
        evaluation mode and the random sampling of anchors uses a stream of its own, the same each time."""
        self.detector.train()
        for module in self.detector.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            with autocast(self.device):
                losses = self.detector(images, targets)
        self.detector.eval()
        return losses

    def _log_losses(self, stage: str, losses: dict[str, torch.Tensor], batch_size: int) -> torch.Tensor:
        total = sum(losses.values())
        self.log_dict(
            {f"{stage}_loss": total, **{f"{stage}_{name}": v for name, v in losses.items()}},
            on_step=False,
            on_epoch=True,
            batch_size=batch_size,
        )
        return total

    def configure_optimizers(self):
        hp = self.hparams
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=hp.lr, eps=hp.eps, betas=tuple(hp.betas), weight_decay=hp.weight_decay
        )
        total = int(self.trainer.estimated_stepping_batches)
        return optimise(optimizer, total, WARMUP_STEPS, hp.lr / 10, hp.lr, hp.lr / 100)

    # --- inference -----------------------------------------------------------------------------------

    @torch.inference_mode()
    def detect(self, slices: Iterable[torch.Tensor], batch_size: int = 32) -> list[dict[str, torch.Tensor]]:
        """Detections of each slice, on the CPU.

        Args:
            slices: (C, H, W) float32 in [0, 1].

        Returns:
            A dict a slice: ``boxes`` (N, 4) xyxy in voxels, ``scores`` (N,) in [0, 1], ``labels`` (N,), best first.
        """
        self.eval()
        slices = list(slices)
        found = []
        for start in range(0, len(slices), batch_size):
            batch = [s.to(self.device) for s in slices[start : start + batch_size]]
            with autocast(self.device):
                found += [_to_cpu(d) for d in self.detector(batch)]
        return found

    def detect_volume(self, prepared: PreparedScan, batch_size: int = 32) -> dict[int, dict[str, torch.Tensor]]:
        """`detect` on every slice with brain: detections by slice index."""
        with_brain = np.flatnonzero(prepared.head.any((1, 2)))
        slices = [torch.from_numpy(prepared.scan[:, z].astype(np.float32)) for z in with_brain]
        return dict(zip(with_brain.tolist(), self.detect(slices, batch_size), strict=True))

    def propose(
        self,
        prepared: PreparedScan,
        detections: dict[int, dict[str, torch.Tensor]],
        roi_size: tuple[int, int, int],
        threshold: float | None = None,
    ) -> list[Region]:
        """The volume's regions, made consistent over slices, at the threshold (None for the model's own)."""
        return regions_of(self.keep(detections, threshold), prepared.head, roi_size, self.hparams.consistency)

    def keep(self, detections: dict[int, dict[str, torch.Tensor]], threshold: float | None = None) -> Kept:
        """The boxes of a volume that propose its regions, at the threshold (None for the model's own)."""
        threshold = self.hparams.score_threshold if threshold is None else threshold
        return keep_boxes(detections, threshold, self.hparams.consistency)


def _to_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Detached, and in float32 where they came in half precision."""
    return {name: (t.float() if t.is_floating_point() else t).detach().cpu() for name, t in tensors.items()}


# --- the network ---------------------------------------------------------------------------------------


def build_detector(
    in_channels: int, anchor_sizes: tuple[float, ...], image_size: int, backbone_weights: str | None = None
) -> FasterRCNN:
    """torchvision's Faster R-CNN over a resnet18 feature pyramid, one anchor size a pyramid level."""
    sizes = anchors_at(anchor_sizes, image_size)
    backbone = build_backbone(in_channels, len(sizes), backbone_weights)
    levels = [str(i) for i in range(len(sizes) - 1)]
    pooled = MultiScaleRoIAlign(featmap_names=levels, output_size=7, sampling_ratio=2)
    return FasterRCNN(
        backbone,
        num_classes=None,
        min_size=image_size,
        max_size=4 * image_size,
        image_mean=[0.0] * in_channels,
        image_std=[1.0] * in_channels,
        rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in sizes), (ASPECT_RATIOS,) * len(sizes)),
        rpn_pre_nms_top_n_train=PROPOSALS["train"],
        rpn_post_nms_top_n_train=PROPOSALS["train"],
        rpn_pre_nms_top_n_test=4 * PROPOSALS["test"],
        rpn_post_nms_top_n_test=PROPOSALS["test"],
        box_roi_pool=pooled,
        box_head=TwoMLPHead(FPN_CHANNELS * 7**2, HEAD_CHANNELS),
        box_predictor=_predictor(),
        **MATCHING,
        box_detections_per_img=DETECTIONS_PER_SLICE,
        box_score_thresh=MIN_SCORE,
    )


def _predictor() -> nn.Module:
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    return FastRCNNPredictor(HEAD_CHANNELS, num_classes=2)


def build_backbone(in_channels: int, levels: int, weights: str | None) -> BackboneWithFPN:
    """resnet18 with a feature pyramid of `levels` levels: stages at strides 4, 8, ... and a pooled last one."""
    body = resnet18(weights=None)
    if weights is not None:
        body.load_state_dict(_read_state_dict(weights, body))
    body.conv1 = adapt_first_conv(body.conv1, in_channels)
    stages = {f"layer{i + 1}": str(i) for i in range(levels - 1)}
    channels = [64 * 2**i for i in range(levels - 1)]
    return BackboneWithFPN(body, stages, channels, FPN_CHANNELS)


def adapt_first_conv(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """The first convolution for another number of channels.

    Its RGB filters are summed and shared out, so that a grey image answers as its RGB copy did.
    """
    adapted = nn.Conv2d(in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False)
    with torch.no_grad():
        adapted.weight.copy_(conv.weight.sum(1, keepdim=True).expand_as(adapted.weight) / in_channels)
    return adapted


def _read_state_dict(path: str, body: nn.Module) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"backbone weights {path} cannot be read ({type(error).__name__}); nothing is downloaded: "
            "give the path of a resnet18 state dict"
        ) from None
    if set(state) != set(body.state_dict()):
        raise UserError(f"backbone weights {path} are no state dict of torchvision's resnet18")
    return state
