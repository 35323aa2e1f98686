"""The networks of both stages as ONNX: what of them is arithmetic on tensors of known rank, and nothing else.

torchvision's detectors do not export whole (pytorch/vision issue 9306), so stage 1 is cut where its boxes are sorted
and suppressed: one network proposes candidates, another scores the boxes that `runner.model` leaves of them. Weights
keep the names that they have in checkpoints.
"""

import warnings

import onnx
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim
from torchvision.ops import roi_align

from models.rpn.detector import Detector
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer

OPSET = 20  # onnxruntime reads it from 1.17 on


class ProposalNetwork(nn.Module):
    """From slices (B, C, h, w) in [0, 1] to the features of all levels but the last, then the objectness and then the
    offsets of the anchors of all levels."""

    def __init__(self, detector: Detector, scale: float) -> None:
        super().__init__()
        self.detector, self.scale = detector, scale

    def forward(self, slices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        images = F.interpolate(slices, scale_factor=self.scale, mode="bilinear")
        features = list(self.detector.backbone(images).values())
        objectness, offsets = self.detector.rpn.head(features)
        return (*features[:-1], *objectness, *offsets)


class BoxNetwork(nn.Module):
    """From the boxes of each pooled level, (N, 5) with the number of their slice before their corners in the level's
    pixels, and then the features of each, (B, K, h, w), to scores (N,) in [0, 1] and offsets (N, 4) of what is lesion:
    those of all boxes, level by level."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, *boxes_and_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heads, levels = self.detector.roi_heads, len(boxes_and_features) // 2
        pool = heads.box_roi_pool
        pairs = zip(boxes_and_features[levels:], boxes_and_features[:levels], strict=True)
        pooled = [roi_align(maps, boxes, pool.output_size, 1.0, pool.sampling_ratio) for maps, boxes in pairs]
        logits, offsets = heads.box_predictor(heads.box_head(torch.cat(pooled)))
        return logits.softmax(1)[:, 1], offsets[:, 4:8]


class WindowNetwork(nn.Module):
    """From windows (B, C, D, H, W) to class probabilities (B, K, D, H, W)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.net(windows).softmax(1)


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
    """`WindowNetwork` for windows of the model's size."""
    windows = torch.zeros(2, model.hparams["in_channels"], *model.window)
    return to_onnx(WindowNetwork(model.net).eval(), (windows,), ["windows"], ({0: Dim.DYNAMIC},))


def to_onnx(network: nn.Module, inputs: tuple, names: list[str], dynamic: tuple) -> onnx.ModelProto:
    """A network in ONNX, traced with inputs, for any size of their `dynamic` axes; without paths of this machine."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own libraries
        # Not optimised: that would merge weights, which a training starts from. onnxruntime optimises when it loads.
        how: dict = {"dynamo": True, "optimize": False, "opset_version": OPSET, "verbose": False}
        program = torch.onnx.export(network, inputs, input_names=names, dynamic_shapes=dynamic, **how)
    assert program is not None  # it is where `dynamo` is asked for
    model = program.model_proto
    graph = model.graph
    # Without what the exporter notes of each node: lines of source with the paths of this machine, and their size.
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    graph.ClearField("value_info")
    _drop_zero_biases(graph)
    return model


def _drop_zero_biases(graph: onnx.GraphProto) -> None:
    """onnxscript 0.7.2 gives 3D convolutions without bias one of zeros, in a shape that onnxruntime refuses."""
    zeros = {node.output[0] for node in graph.node if node.op_type == "Expand"}
    for node in graph.node:
        if node.op_type == "Conv" and node.input[-1] in zeros:
            del node.input[-1]
