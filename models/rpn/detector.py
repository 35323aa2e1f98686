"""The network of stage 1: torchvision's Faster R-CNN over a resnet18 pyramid, set for few and small lesions."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from data.scans import head
from data.scans.head import Window
from models.precision import autocast
from models.rpn.settings import ASPECT_RATIOS, REFERENCE_SIZE, SMALLEST_ANCHOR, STRIDES
from utils.errors import UserError

FPN_CHANNELS = 64  # a quarter of torchvision's: grey slices with one class found as many lesions as with 128, in 60 %
HEAD_CHANNELS = 256
POOLED, SAMPLING_RATIO = 7, 1  # side of the features of a proposal, and points per bin, none wider than two pixels
# 1000 proposals a slice, torchvision's default, take 43 s a volume; the best few hold the lesions of a slice.
PROPOSALS = {"training": 200, "testing": 30}
CANDIDATES = {"training": 200, "testing": 120}  # of them before the suppression of overlapping ones, a pyramid level
DETECTIONS_PER_SLICE = 10
MIN_SCORE = 0.01  # detections below are not even returned; the region threshold comes later
# IoU from which on anchors, and proposed boxes, are learned as lesion, and below which as none. A pixel changes the IoU
# of a small box a lot: torchvision's thresholds, (0.7, 0.3) and (0.5, 0.5), leave little to learn from.
ANCHOR_IOU, BOX_IOU = (0.5, 0.3), (0.4, 0.4)
POSITIVE_SHARE = 0.5  # the largest share of lesion among the anchors or boxes that a slice's loss looks at
ANCHOR_SAMPLES, BOX_SAMPLES = 256, 32  # that a slice's loss looks at


class Detector(nn.Module):
    """Faster R-CNN on slices of one shape, with one foreground class and one anchor size a pyramid level, that spends
    nothing on the air around the heads. Arguments as of `models.rpn.module.RPN`."""

    def __init__(
        self,
        in_channels: int,
        anchor_sizes: tuple[float, ...],
        image_size: int,
        slice_side: int | None = None,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.slice_side = image_size, slice_side
        sizes = [max(size * image_size / REFERENCE_SIZE, SMALLEST_ANCHOR) for size in anchor_sizes]
        self.backbone = build_backbone(in_channels, len(sizes), backbone_weights)
        levels = [str(i) for i in range(len(sizes) - 1)]
        heads = RoIHeads(
            MultiScaleRoIAlign(featmap_names=levels, output_size=POOLED, sampling_ratio=SAMPLING_RATIO),
            TwoMLPHead(FPN_CHANNELS * POOLED**2, HEAD_CHANNELS),
            FastRCNNPredictor(HEAD_CHANNELS, num_classes=2),
            *BOX_IOU,
            batch_size_per_image=BOX_SAMPLES,
            positive_fraction=POSITIVE_SHARE,
            bbox_reg_weights=None,
            score_thresh=MIN_SCORE,
            nms_thresh=0.5,
            detections_per_img=DETECTIONS_PER_SLICE,
        )
        self.rpn = RegionProposalNetwork(
            Anchors(tuple((size,) for size in sizes), (ASPECT_RATIOS,) * len(sizes)),
            RPNHead(FPN_CHANNELS, len(ASPECT_RATIOS)),
            *ANCHOR_IOU,
            batch_size_per_image=ANCHOR_SAMPLES,
            positive_fraction=POSITIVE_SHARE,
            pre_nms_top_n=CANDIDATES,
            post_nms_top_n=PROPOSALS,
            nms_thresh=0.7,
        )
        self.roi_heads = heads  # behind `rpn`: optimisers of checkpoints know weights by their order

    def forward(
        self, images: list[torch.Tensor], targets: list[dict] | None = None, window: Window | None = None
    ) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        """Losses by name in training mode; otherwise a dict a slice, as of `RPN.detect`.

        Args:
            images: (C, H, W) in [0, 1], all of one shape.
            targets: ``boxes`` (N, 4) xyxy in pixels of a slice and ``labels`` (N,) of each; for training.
            window: rows and columns to look at; None for those of `head_window`.
        """
        rows, columns = window = head_window(images) if window is None else window
        with autocast(images[0].device):
            scale, batch = self.scale(images), self.look_at(images, window)
            corner = torch.tensor([columns.start, rows.start] * 2, dtype=batch.dtype, device=batch.device)
            if targets is not None:
                targets = [{**target, "boxes": (target["boxes"] - corner) * scale} for target in targets]
            listed = ImageList(batch, [tuple(batch.shape[-2:])] * len(batch))
            features = self.backbone(batch)
            proposals, anchor_losses = self.rpn(listed, features, targets)
            detections, box_losses = self.roi_heads(features, proposals, listed.image_sizes, targets)
        if self.training:
            return {**anchor_losses, **box_losses}
        return [{**each, "boxes": each["boxes"] / scale + corner} for each in detections]

    def look_at(self, images: list[torch.Tensor], window: Window) -> torch.Tensor:
        """The window of slices (C, H, W) as the backbone's input (B, C, h, w), in the network's pixels."""
        rows, columns = window
        batch = torch.stack([image[:, rows, columns] for image in images])
        return F.interpolate(batch, scale_factor=self.scale(images), mode="bilinear")

    def scale(self, images: list[torch.Tensor]) -> float:
        """The network's pixels per voxel of slices (C, H, W)."""
        return self.image_size / (self.slice_side or min(images[0].shape[-2:]))


def head_window(images: list[torch.Tensor]) -> Window:
    """The rows and columns that hold all heads (above 0), with a margin; all of them without a head."""
    return head.head_window(torch.stack([(image > 0).any(0) for image in images]).any(0).cpu().numpy())


class Anchors(AnchorGenerator):
    """torchvision's, with fixed strides: it infers them by a division that only suits multiples of 32."""

    def forward(self, image_list: ImageList, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        first = feature_maps[0]
        self.set_cell_anchors(first.dtype, first.device)
        strides = [[torch.tensor(stride, device=first.device)] * 2 for stride in STRIDES[: len(feature_maps)]]
        anchors = torch.cat(self.grid_anchors([features.shape[-2:] for features in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


def build_backbone(in_channels: int, levels: int, weights: str | None) -> BackboneWithFPN:
    """resnet18 with a feature pyramid of `levels` levels: stages at strides 4, 8, ... and a pooled last one."""
    body = resnet18(weights=None)
    if weights is not None:
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(
                f"backbone weights {weights} cannot be read ({type(error).__name__}); nothing is downloaded: "
                "give the path of a resnet18 state dict"
            ) from None
        if set(state) != set(body.state_dict()):
            raise UserError(f"backbone weights {weights} are no state dict of torchvision's resnet18")
        body.load_state_dict(state)
    body.conv1 = adapt_first_conv(body.conv1, in_channels)
    stages = {f"layer{i + 1}": str(i) for i in range(levels - 1)}
    channels = [64 * 2**i for i in range(levels - 1)]
    return BackboneWithFPN(body, stages, channels, FPN_CHANNELS)


def adapt_first_conv(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """resnet18's first convolution for other channels, in which a grey image gives what its RGB copy gave."""
    adapted = nn.Conv2d(in_channels, conv.out_channels, kernel_size=7, stride=2, padding=3, bias=False)
    with torch.no_grad():
        adapted.weight.copy_(conv.weight.sum(1, keepdim=True).expand_as(adapted.weight) / in_channels)
    return adapted
