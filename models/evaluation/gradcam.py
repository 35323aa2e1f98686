"""Grad-CAM of the 3D network (Selvaraju et al., 2017, arXiv 1610.02391), inside the proposed regions."""

from collections.abc import Sequence

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from torch import nn

from data.scans.prepared import PreparedScan
from models.evaluation.layers import Layers, layers_of
from models.pipeline import Segmenter
from models.segmentation.module import StrokeFormer
from models.segmentation.settings import SlidingWindow
from utils.regions.region import Region


class LesionTarget:
    """The lesion logits of a window, each voxel weighed with its lesion probability (D, H, W), held constant."""

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return ((logits[1:].amax(0) - logits[0]) * self.weights).sum()


def window_layers(model: StrokeFormer) -> Layers:
    """The layers of the 3D network, with the sizes (K, d, h, w) of their maps of one window."""
    return layers_of(model.net, torch.zeros(1, model.hparams["in_channels"], *model.window, device=model.device))


def find_layers(model: Segmenter, names: Sequence[str] | None, argument: str = "--target_layers") -> list[nn.Module]:
    """The named layers of the 3D network, e.g. ``decoders.1``; raises as `Layers.find`."""
    if not names:
        return []
    assert isinstance(model, StrokeFormer)  # ensembles have been refused
    return window_layers(model).find(names, argument)


def gradcam(
    model: StrokeFormer,
    prepared: PreparedScan,
    regions: list[Region] | None,
    layers: Sequence[nn.Module],
    sliding: SlidingWindow = SlidingWindow(),
) -> np.ndarray:
    """Where layers, whose output is (B, K, d, h, w), find evidence of a lesion; without regions in the whole volume.

    Returns:
        (D, H, W) float32 in [0, 1], 0 outside the brain of the regions. Each window's heat, which Grad-CAM scales to
        [0, 1], is weighed with its largest lesion probability: one without lesion would otherwise glow like any other.
    """
    with GradCAM(model, list(layers)) as cam:

        def heat(windows: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                probability = 1 - model(windows).softmax(1)[:, 0]
            maps = cam(windows, [LesionTarget(p) for p in probability])
            maps = torch.from_numpy(np.ascontiguousarray(maps)).to(windows.device)
            return (maps * probability.amax((1, 2, 3), keepdim=True))[:, None]

        return model.slide(heat, prepared, regions, [0.0], sliding, 1)[0]
