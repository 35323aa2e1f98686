"""Class activation maps of both networks: EigenCAM of the 2D backbone, Grad-CAM of the 3D network, and their layers."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_grad_cam import EigenCAM, GradCAM
from torch import nn

from data.scans.prepared import PreparedScan
from models.pipeline import Segmenter
from models.rpn.detector import head_window
from models.rpn.module import RPN
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

    def table(self, argument: str) -> str:
        """A line for each of the outermost layers, with channels x sides of its map; inner ones can be named too."""
        shown: dict[str, str] = {}
        for name, size in self.sizes.items():
            if size != self.output and not any(name.startswith(f"{outer}.") for outer in shown):
                shown[name] = " x ".join(map(str, size))
        width, image = max(map(len, shown)), " x ".join(map(str, self.image))
        lines = [f"  {name:{width}}  {size}" for name, size in shown.items()]
        return "\n".join([f"Layers for {argument}, and their maps of an image of {image}:", *lines])


def find_layers(
    model: RPN | Segmenter, names: Sequence[str] | None, argument: str = "--target_layers"
) -> list[nn.Module]:
    """The layers that an argument names, e.g. ``backbone.fpn`` of stage 1 or ``decoders.1`` of stage 2.

    Refuses unknown ones and those that give no map.
    """
    if not names:
        return []
    assert isinstance(model, RPN | StrokeFormer)  # ensembles have been refused
    layers = layers_of(model)
    for name in names:
        if name not in layers.sizes:
            what = "gives no map" if name in layers.modules else "is no layer of this network"
            raise UserError(f"{argument} {name} {what}; {argument} list shows those to choose from")
    return [layers.modules[name] for name in names]


def layers_of(model: RPN | StrokeFormer) -> Layers:
    """The layers that give maps for a square slice (of the 2D backbone) or for a window (of the 3D network).

    Those count that are called once and give one tensor with the axes of the image, all sides shrunk alike; tokens with
    the channels behind, as transformers have them, are none.
    """
    network, prefix = (model.detector.backbone, "backbone") if isinstance(model, RPN) else (model.net, "")
    sides = (model.detector.image_size,) * 2 if isinstance(model, RPN) else model.window
    image = torch.zeros(1, model.hparams["in_channels"], *sides, device=model.device)
    modules = {name: module for name, module in network.named_modules(prefix=prefix) if module is not network}
    outputs: dict[str, list[Size | None]] = defaultdict(list)

    def note(name: str) -> Callable:
        return lambda module, inputs, output: outputs[name].append(_size_of_map(_as_one_map(output), image))

    hooks = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            output = _size_of_map(network.eval()(image), image)
    finally:
        for hook in hooks:
            hook.remove()
    sizes = {name: size for name in modules if len(outputs[name]) == 1 and (size := outputs[name][0])}
    return Layers(modules, sizes, tuple(image.shape[1:]), output)


def _as_one_map(output):
    """The levels of the feature pyramid as channels of one map (B, K, h, w); any other output as it is.

    As `pytorch_grad_cam.utils.reshape_transforms.fasterrcnn_reshape_transform`, but of the finest level's size: a
    lesion is less than a pixel of the coarsest.
    """
    if not (isinstance(output, dict) and "pool" in output):
        return output
    size = output["0"].shape[-2:]
    return torch.cat([F.interpolate(level.abs(), size, mode="bilinear") for level in output.values()], dim=1)


def _size_of_map(output: object, image: torch.Tensor) -> Size | None:
    """(K, *sides) of a map of the image; None for what is none."""
    if not isinstance(output, torch.Tensor) or output.ndim != image.ndim:
        return None
    shrunk = {side / there for side, there in zip(image.shape[2:], output.shape[2:], strict=True)}
    return tuple(output.shape[1:]) if len(shrunk) == 1 else None


class BackboneCAM(EigenCAM):
    """pytorch-grad-cam's in milliseconds, with the arbitrary sign of the first component such that the heat lies where
    the features are strong. (With the larger extreme positive, as Chung and Ying, 2025, doi 10.3390/app15137562, the
    air around a brain glowed.)"""

    def get_cam_image(self, input_tensor, target_layer, target_category, activations, grads, eigen_smooth):
        """Maps (B, K, h, w) projected on their first principal component over the voxels, (B, h, w)."""
        heats = []
        for maps in activations:
            features = maps.reshape(len(maps), -1).T
            features = features - features.mean(0)
            direction = np.linalg.svd(features, full_matrices=False)[2][0]
            heat = features @ (direction if direction.sum() >= 0 else -direction)
            heats.append(heat.reshape(maps.shape[1:]))
        return np.stack(heats)


def eigencam(model: RPN, prepared: PreparedScan, slices: list[int], layers: list[nn.Module]) -> dict[int, np.ndarray]:
    """What stands out to layers of the backbone, lesion or not, on average, in slices with brain.

    EigenCAM is of Muhammad and Yeasin (2020, arXiv 2008.00299); no detection takes part in it.

    Returns:
        (H, W) float32 in [0, 1] by slice, 0 where the network does not look; 1 is the most of each slice.
    """
    images = {z: torch.from_numpy(image) for z, image in prepared.slices().items()}
    window = head_window(list(images.values()))
    heats = {}
    with BackboneCAM(model.detector.backbone, layers, _as_one_map) as cam, torch.no_grad():
        for z in slices:
            batch = model.detector.look_at([images[z].to(model.device)], window)
            (heat,) = torch.from_numpy(cam(batch, targets=[]))
            heats[z] = np.zeros(images[z].shape[-2:], np.float32)
            shape = heats[z][window].shape
            heats[z][window] = F.interpolate(heat[None, None], shape, mode="bilinear")[0, 0].numpy()
    return heats


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
