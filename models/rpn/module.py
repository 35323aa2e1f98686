"""Stage 1: a 2D Faster R-CNN that proposes lesion regions slice by slice (Ren et al., 2015, arXiv 1506.01497)."""

from collections.abc import Iterable

import pytorch_lightning as pl
import torch
from torch import nn

from data.batches.context import Window, network_channels, network_slices
from data.batches.sampling import Share
from data.scans.prepared import PreparedScan
from models.precision import autocast
from models.rpn.anchors import ANCHOR_SIZES, REFERENCE_SIZE
from models.rpn.detector import build_detector, head_window
from models.schedule import optimise
from models.training.shared_batch import from_all, largest, processes, take_share
from utils.regions.measures import box_scores
from utils.regions.region import Region
from utils.regions.rules import Kept, keep_boxes, regions_of

DEFAULT_THRESHOLD = 0.5  # of a detection that proposes a region, until calibration finds a better one
# What says which epoch is best. Not the loss: its box regression is summed over the boxes that were matched, so it
# grows as the network finds more lesions, and on synthetic scans the lowest validation loss was that of epoch 0,
# where lesion coverage was 0.1.
MONITOR = ("val_map_50", "max")
WARMUP_STEPS = 30


class RPN(pl.LightningModule):
    """Faster R-CNN with one foreground class on slices (C, H, W) in [0, 1].

    Args:
        in_channels: channels of a scan.
        anchor_sizes: in pixels of a slice whose shorter side is `REFERENCE_SIZE`, one a pyramid level.
        image_size: pixels to which `slice_side` is resized inside; anchors scale with it, so that they mean the same
            share of the head on coarse scans.
        slice_side: shorter side of the slices of the training, in voxels, so that a grid of other slices does not
            change how large a voxel is seen; None, as in checkpoints that do not name it, for that of each slice.
        backbone_weights: file with a state dict of torchvision's resnet18.
        consistency: rule by which boxes of slices become regions, ``linked`` or ``grouped`` (`utils.regions.rules`).
        evidence_growth: power of the proposed voxels with which the odds asked for of further candidates grow
            (``linked``; `utils.regions.linked.trusted`); 0, as in checkpoints that do not name it, for one threshold
            for all.
        score_threshold: evidence, or score, from which on boxes propose a region.
        context: further channels of a slice, ``neighbours`` and ``mirror`` (`data.batches.context`).
        matching: which boxes are learned as lesions, a key of `models.rpn.detector.MATCHING`.
        focal: whether the objectness of anchors is learned with the focal loss.
        label_smoothing: of the classes of proposals, in [0, 1].
    """

    def __init__(
        self,
        in_channels: int = 1,
        anchor_sizes: tuple[float, ...] = ANCHOR_SIZES["ATLAS"],
        image_size: int = REFERENCE_SIZE,
        slice_side: int | None = None,
        consistency: str = "linked",
        evidence_growth: float = 0.0,
        score_threshold: float = DEFAULT_THRESHOLD,
        lr: float = 1e-4,
        eps: float = 1e-8,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-4,
        backbone_weights: str | None = None,
        context: tuple[str, ...] = (),
        matching: str = "small",
        focal: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="backbone_weights")
        channels = network_channels(in_channels, context)
        self.detector = build_detector(
            channels, anchor_sizes, image_size, slice_side, backbone_weights, matching, focal, label_smoothing
        )
        self.val_slices: list[list[tuple[dict, dict]]] = []  # detections and targets, by batch

    # --- training ------------------------------------------------------------------------------------

    def training_step(self, batch, batch_index):
        images, targets = batch
        share = take_share(self, batch_index, len(images))
        with autocast(self.device):
            losses = self.detector(images, targets, _shared_window(images), share.place)
        return self._log_losses("train", losses, share) * share.own * processes() / share.whole

    def validation_step(self, batch, batch_index):
        images, targets = batch
        share, window = take_share(self, batch_index, len(images)), _shared_window(images)
        self._log_losses("val", self.validation_losses(images, targets, window, share.place), share)
        with autocast(self.device):
            found = [_to_cpu(d) for d in self.detector(images, window=window)]
        true = [_to_cpu({k: t[k] for k in ("boxes", "labels")}) for t in targets]
        self.val_slices.append(list(zip(found, true, strict=True))[: share.own])

    def on_validation_epoch_end(self) -> None:
        batches = zip(*from_all(self.val_slices), strict=True)
        slices = [pair for shares in batches for share in shares for pair in share]
        detections, targets = (list(part) for part in zip(*slices, strict=True)) if slices else ([], [])
        kept = [found["boxes"][found["scores"] >= DEFAULT_THRESHOLD].numpy() for found in detections]
        self.log_dict({f"val_{name}": value for name, value in box_scores(detections, targets, kept).items()})
        self.val_slices = []

    @torch.no_grad()
    def validation_losses(
        self, images: list[torch.Tensor], targets: list[dict], window: Window | None = None, place: int = 0
    ) -> dict[str, torch.Tensor]:
        """Losses without a trace: torchvision gives them in training mode alone, so the batch norms are held in
        evaluation mode and the random sampling of anchors uses a stream of its own, the same each time."""
        self.detector.train()
        for module in self.detector.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            with autocast(self.device):
                losses = self.detector(images, targets, window, place)
        self.detector.eval()
        return losses

    def _log_losses(self, stage: str, losses: dict[str, torch.Tensor], share: Share) -> torch.Tensor:
        total = sum(losses.values())
        self.log_dict(
            {f"{stage}_loss": total, **{f"{stage}_{name}": v for name, v in losses.items()}},
            on_step=False,
            on_epoch=True,
            batch_size=share.own,
            sync_dist=processes() > 1,
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
            slices: (C, H, W) float32 in [0, 1], context included, all of one shape.

        Returns:
            A dict a slice: ``boxes`` (N, 4) xyxy in voxels, ``scores`` (N,) in [0, 1], ``labels`` (N,), best first.
        """
        self.eval()
        slices = list(slices)
        if not slices:
            return []
        window, found = head_window(slices), []  # one for all, so that batches do not change the detections
        for start in range(0, len(slices), batch_size):
            batch = [s.to(self.device) for s in slices[start : start + batch_size]]
            with autocast(self.device):
                found += [_to_cpu(d) for d in self.detector(batch, window=window)]
        return found

    def detect_volume(self, prepared: PreparedScan, batch_size: int = 32) -> dict[int, dict[str, torch.Tensor]]:
        """`detect` on every slice with brain: detections by slice index."""
        images = self.network_slices(prepared)
        return dict(zip(images, self.detect(images.values(), batch_size), strict=True))

    def network_slices(self, prepared: PreparedScan) -> dict[int, torch.Tensor]:
        """What `detect` takes of every slice with brain, (C, H, W) float32 with context, by slice index."""
        slices = network_slices(prepared.scan, prepared.brain, self.hparams.context)
        return {z: torch.from_numpy(image) for z, image in slices.items()}

    def propose(
        self,
        prepared: PreparedScan,
        detections: dict[int, dict[str, torch.Tensor]],
        roi_size: tuple[int, int, int],
        threshold: float | None = None,
    ) -> list[Region]:
        """The volume's regions, made consistent over slices, at the threshold (None for the model's own)."""
        kept = self.keep(prepared, detections, roi_size, threshold)
        return regions_of(kept, prepared.brain, roi_size, self.hparams.consistency)

    def keep(
        self,
        prepared: PreparedScan,
        detections: dict[int, dict[str, torch.Tensor]],
        roi_size: tuple[int, int, int],
        threshold: float | None = None,
    ) -> Kept:
        """The boxes of a volume that propose its regions, at the threshold (None for the model's own)."""
        hp = self.hparams
        threshold = hp.score_threshold if threshold is None else threshold
        return keep_boxes([detections], threshold, hp.consistency, hp.evidence_growth, prepared.brain.shape, roi_size)


def _shared_window(images: list[torch.Tensor]) -> Window:
    """The window of the heads of a batch, those that other processes have included."""
    rows, columns = head_window(images)
    ends = torch.tensor([-rows.start, rows.stop, -columns.start, columns.stop], device=images[0].device)
    top, bottom, left, right = largest(ends).tolist()
    return slice(-top, bottom), slice(-left, right)


def _to_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Detached, and in float32 where they came in half precision."""
    return {name: (t.float() if t.is_floating_point() else t).detach().cpu() for name, t in tensors.items()}
