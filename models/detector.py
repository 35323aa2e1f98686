"""The network of stage 1: torchvision's Faster R-CNN over a resnet18 pyramid, with losses for few and small lesions."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, sigmoid_focal_loss

from models.anchors import ASPECT_RATIOS, anchors_at
from utils.errors import UserError

FPN_CHANNELS = 128  # half of torchvision's 256: grey slices with one class need less, and it halves the time
HEAD_CHANNELS = 256
POOLED = 7  # side of the features of a proposal
# 1000 proposals a slice, torchvision's default, spend 43 s a volume in the box head; the lesions of a slice
# are found among the best few.
PROPOSALS = {"training": 200, "testing": 30}
CANDIDATES = {"training": 200, "testing": 120}  # of them before the suppression of overlapping ones, a pyramid level
DETECTIONS_PER_SLICE = 10
MIN_SCORE = 0.01  # detections below are not even returned; the region threshold comes later
# Lesions are few and a pixel more or less changes the IoU of a small box a lot: looser matches and half of the
# sampled boxes positive. On synthetic scans at 3 mm that raised lesion coverage at the threshold of 0.5 from 0.71
# to 0.86 after 230 steps, against torchvision's defaults (one seed, scored on the scans that it was chosen on).
ANCHOR_MATCHING = {"fg_iou_thresh": 0.5, "bg_iou_thresh": 0.3, "batch_size_per_image": 256, "positive_fraction": 0.5}
BOX_MATCHING = {"fg_iou_thresh": 0.4, "bg_iou_thresh": 0.4, "batch_size_per_image": 32, "positive_fraction": 0.5}
FOCAL_BIAS = -4.6  # log odds of 0.01, the published start: else the many anchors without lesion drown the first steps


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's, with the focal loss (Lin et al., 2017, arXiv 1708.02002, eq. 5) over all anchors as an option.

    Args:
        focal: in place of the cross-entropy over 256 sampled anchors a slice.
    """

    def __init__(self, *args, focal: bool, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.focal = focal

    def compute_loss(self, objectness, pred_bbox_deltas, labels, regression_targets):
        objectness_loss, box_loss = super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)
        if self.focal:
            truth = torch.cat(labels)
            counted = truth >= 0  # anchors between the two IoU thresholds are -1
            losses = sigmoid_focal_loss(objectness.flatten()[counted].float(), truth[counted])
            objectness_loss = losses.sum() / (truth == 1).sum().clamp(min=1)
        return objectness_loss, box_loss


class BoxHeads(RoIHeads):
    """torchvision's, with smoothed labels in the classification loss as an option.

    Args:
        label_smoothing: share of a label that is spread over both classes, 0 for torchvision's loss.
    """

    def __init__(self, *args, label_smoothing: float, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.label_smoothing = label_smoothing

    def forward(self, features, proposals, image_shapes, targets=None):
        if not self.training:
            return super().forward(features, proposals, image_shapes)
        proposals, _, labels, regression_targets = self.select_training_samples(proposals, targets)
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        class_logits, box_regression = self.box_predictor(self.box_head(pooled))
        _, box_loss = fastrcnn_loss(class_logits, box_regression, labels, regression_targets)
        class_loss = F.cross_entropy(class_logits, torch.cat(labels), label_smoothing=self.label_smoothing)
        return [], {"loss_classifier": class_loss, "loss_box_reg": box_loss}


def build_detector(
    in_channels: int,
    anchor_sizes: tuple[float, ...],
    image_size: int,
    backbone_weights: str | None = None,
    focal: bool = False,
    label_smoothing: float = 0.0,
) -> GeneralizedRCNN:
    """Faster R-CNN with one foreground class and one anchor size a pyramid level; arguments as in `models.rpn.RPN`."""
    sizes = anchors_at(anchor_sizes, image_size)
    backbone = build_backbone(in_channels, len(sizes), backbone_weights)
    levels = [str(i) for i in range(len(sizes) - 1)]
    heads = BoxHeads(
        MultiScaleRoIAlign(featmap_names=levels, output_size=POOLED, sampling_ratio=2),
        TwoMLPHead(FPN_CHANNELS * POOLED**2, HEAD_CHANNELS),
        FastRCNNPredictor(HEAD_CHANNELS, num_classes=2),
        **BOX_MATCHING,
        bbox_reg_weights=None,
        score_thresh=MIN_SCORE,
        nms_thresh=0.5,
        detections_per_img=DETECTIONS_PER_SLICE,
        label_smoothing=label_smoothing,
    )
    anchors = AnchorGenerator(tuple((size,) for size in sizes), (ASPECT_RATIOS,) * len(sizes))
    anchor_head = RPNHead(FPN_CHANNELS, len(ASPECT_RATIOS))
    if focal:
        nn.init.constant_(anchor_head.cls_logits.bias, FOCAL_BIAS)
    proposals = ProposalNetwork(
        anchors,
        anchor_head,
        **ANCHOR_MATCHING,
        pre_nms_top_n=CANDIDATES,
        post_nms_top_n=PROPOSALS,
        nms_thresh=0.7,
        focal=focal,
    )
    transform = GeneralizedRCNNTransform(image_size, 4 * image_size, [0.0] * in_channels, [1.0] * in_channels)
    return GeneralizedRCNN(backbone, proposals, heads, transform)


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
