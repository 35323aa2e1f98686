"""The networks of both stages as ONNX: what of them is arithmetic on tensors of known rank, and nothing else.

torchvision's detectors do not export whole (pytorch/vision issue 9306), so stage 1 is cut where its boxes are sorted
and suppressed: one network proposes candidates, another scores the boxes that `runner.model` leaves of them.
"""

import warnings

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.export import Dim
from torchvision.ops import roi_align

from models.rpn.detector import Detector
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer

OPSET = 20  # onnxruntime reads it from 1.17 on
SMALLEST_HALVED = 64  # values of a weight; shorter ones save nothing, and some are shapes and scales
LARGEST_HALF = float(np.finfo(np.float16).max)


class ProposalNetwork(nn.Module):
    """From slices (B, C, h, w) in [0, 1] to the features of all levels but the last, then the objectness and then the
    offsets of the anchors of all levels."""

    def __init__(self, detector: Detector, scale: float) -> None:
        super().__init__()
        self.backbone, self.head, self.scale = detector.backbone, detector.rpn.head, scale

    def forward(self, slices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        images = F.interpolate(slices, scale_factor=self.scale, mode="bilinear")
        features = list(self.backbone(images).values())
        objectness, offsets = self.head(features)
        return (*features[:-1], *objectness, *offsets)


class BoxNetwork(nn.Module):
    """From the boxes of each pooled level, (N, 5) with the number of their slice before their corners in the level's
    pixels, and then the features of each, (B, K, h, w), to scores (N,) in [0, 1] and offsets (N, 4) of what is lesion:
    those of all boxes, level by level."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.heads = detector.roi_heads

    def forward(self, *boxes_and_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pool, levels = self.heads.box_roi_pool, len(boxes_and_features) // 2
        pairs = zip(boxes_and_features[levels:], boxes_and_features[:levels], strict=True)
        pooled = [roi_align(maps, boxes, pool.output_size, 1.0, pool.sampling_ratio) for maps, boxes in pairs]
        logits, offsets = self.heads.box_predictor(self.heads.box_head(torch.cat(pooled)))
        return logits.softmax(1)[:, 1], offsets[:, 4:8]


# --- export --------------------------------------------------------------------------------------------


def export_stage_1(model: RPN, scale: float, shape: tuple[int, int]) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The networks that `ProposalNetwork` and `BoxNetwork` describe, for any number of slices of any size and of boxes.

    Args:
        scale: pixels of the network a voxel.
        shape: (H, W) of slices to trace with.
    """
    network = ProposalNetwork(model.detector, scale).eval()
    slices = torch.zeros(2, model.hparams["in_channels"], *shape)
    proposals = to_onnx(network, (slices,), ["slices"], ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},))
    with torch.no_grad():
        features = network(slices)[: len(model.detector.roi_heads.box_roi_pool.featmap_names)]
    boxes = [torch.zeros(2 + level, 5) for level in range(len(features))]  # as many as another would be one dimension
    names = [f"{kind}_{level}" for kind in ("boxes", "features") for level in range(len(features))]
    dynamic = [{0: Dim.DYNAMIC} for _ in boxes] + [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC} for _ in features]
    return proposals, to_onnx(BoxNetwork(model.detector).eval(), (*boxes, *features), names, (tuple(dynamic),))


def export_stage_2(model: StrokeFormer) -> onnx.ModelProto:
    """From windows (B, C, D, H, W) of the model's size to class probabilities (B, K, D, H, W)."""
    windows = torch.zeros(2, model.hparams["in_channels"], *model.window)
    return to_onnx(nn.Sequential(model.net, nn.Softmax(1)).eval(), (windows,), ["windows"], ({0: Dim.DYNAMIC},))


def to_onnx(network: nn.Module, inputs: tuple, names: list[str], dynamic: tuple) -> onnx.ModelProto:
    """A network in ONNX, traced with inputs, for any size of their `dynamic` axes; without paths of this machine."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own libraries
        program = torch.onnx.export(
            network, inputs, dynamo=True, opset_version=OPSET, input_names=names, dynamic_shapes=dynamic, verbose=False
        )
    assert program is not None  # it is where `dynamo` is asked for
    model = program.model_proto
    graph = model.graph
    # Without what the exporter notes of each node: lines of source with the paths of this machine, and their size.
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    graph.ClearField("value_info")
    return model


def halve_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with its weights stored as float16; they are cast to float32, in which it computes, on loading.

    Weights beyond float16's range stay as they are.
    """
    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < SMALLEST_HALVED or np.abs(values).max() > LARGEST_HALF:
            continue
        name, stored = weight.name, f"{weight.name}_half"
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    model.graph.ClearField("node")
    model.graph.node.extend([*casts, *nodes])
    return model
