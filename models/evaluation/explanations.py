"""Class activation maps (Grad-CAM) of the 3D network, and the layers to take them of."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from torch import nn

from data.scans.prepared import PreparedScan
from models.pipeline import Segmenter
from models.segmentation.module import StrokeFormer
from models.segmentation.settings import SlidingWindow
from utils.errors import UserError
from utils.regions.region import Region

Size = tuple[int, ...]


@dataclass(frozen=True)
class Layers:
    """Modules of a network, by name, and the sizes (K, *sides) of the maps of those that give one, outer ones first."""

    modules: dict[str, nn.Module]
    sizes: dict[str, Size]
    image: Size  # (C, *sides) of the image that the sizes belong to
    output: Size | None  # of what the network returns, which explains nothing; None where that is no map

    def table(self) -> str:
        """A line for each of the outermost layers, with channels x sides of its map; inner ones can be named too."""
        shown: dict[str, str] = {}
        for name, size in self.sizes.items():
            if size != self.output and not any(name.startswith(f"{outer}.") for outer in shown):
                shown[name] = " x ".join(map(str, size))
        width, image = max(map(len, shown)), " x ".join(map(str, self.image))
        lines = [f"  {name:{width}}  {size}" for name, size in shown.items()]
        return "\n".join([f"Layers for --target_layers, and their maps of an image of {image}:", *lines])


def find_layers(model: Segmenter, names: Sequence[str] | None) -> list[nn.Module]:
    """The layers that ``--target_layers`` names, e.g. ``decoders.1``.

    Refuses unknown ones and those that give no map.
    """
    if not names:
        return []
    assert isinstance(model, StrokeFormer)  # ensembles have been refused
    layers = layers_of(model)
    for name in names:
        if name not in layers.sizes:
            what = "gives no map" if name in layers.modules else "is no layer of this network"
            raise UserError(f"--target_layers {name} {what}; --target_layers list shows those to choose from")
    return [layers.modules[name] for name in names]


def layers_of(model: StrokeFormer) -> Layers:
    """The layers that give maps for a window.

    Those count that are called once and give one tensor with the axes of the image, all sides shrunk alike; tokens with
    the channels behind, as transformers have them, are none.
    """
    image = torch.zeros(1, model.hparams["in_channels"], *model.window, device=model.device)
    modules = {name: module for name, module in model.net.named_modules() if module is not model.net}
    outputs: dict[str, list[Size | None]] = defaultdict(list)

    def note(name: str) -> Callable:
        return lambda module, inputs, output: outputs[name].append(_size_of_map(output, image))

    hooks = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            output = _size_of_map(model.net.eval()(image), image)
    finally:
        for hook in hooks:
            hook.remove()
    sizes = {name: size for name in modules if len(outputs[name]) == 1 and (size := outputs[name][0])}
    return Layers(modules, sizes, tuple(image.shape[1:]), output)


def _size_of_map(output: object, image: torch.Tensor) -> Size | None:
    """(K, *sides) of a map of the image; None for what is none."""
    if not isinstance(output, torch.Tensor) or output.ndim != image.ndim:
        return None
    shrunk = {side / there for side, there in zip(image.shape[2:], output.shape[2:], strict=True)}
    return tuple(output.shape[1:]) if len(shrunk) == 1 else None


def gradcam(
    model: StrokeFormer,
    prepared: PreparedScan,
    regions: list[Region] | None,
    layers: Sequence[nn.Module],
    sliding: SlidingWindow = SlidingWindow(),
) -> np.ndarray:
    """Where layers, whose output is (B, K, d, h, w), find evidence of a lesion; without regions in the whole volume.

    Grad-CAM is of Selvaraju et al. (2017, arXiv 1610.02391).

    Returns:
        (D, H, W) float32 in [0, 1], 0 outside the brain of the regions. Each window's heat, which Grad-CAM scales to
        [0, 1], is weighed with its largest lesion probability: one without lesion would otherwise glow like any other.
    """
    with GradCAM(model, list(layers)) as cam:

        def heat(windows: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                probability = 1 - model(windows).softmax(1)[:, 0]
            maps = cam(windows, [partial(_lesion_evidence, p) for p in probability])
            maps = torch.from_numpy(np.ascontiguousarray(maps)).to(windows.device)
            return (maps * probability.amax((1, 2, 3), keepdim=True))[:, None]

        return model.slide(heat, prepared, regions, [0.0], sliding, 1)[0]


def _lesion_evidence(probability: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The lesion logits of a window, each voxel weighed with its lesion probability (D, H, W), held constant."""
    return ((logits[1:].amax(0) - logits[0]) * probability).sum()
