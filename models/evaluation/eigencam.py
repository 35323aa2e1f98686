"""EigenCAM of the 2D network's backbone (Muhammad and Yeasin, 2020, arXiv 2008.00299): where its features are strong.

No detection takes part in it: it shows what stands out to a layer, lesion or not.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_grad_cam import EigenCAM
from torch import nn

from data.scans.prepared import PreparedScan
from models.evaluation.layers import Layers, layers_of
from models.rpn.detector import head_window
from models.rpn.module import RPN


class BackboneCAM(EigenCAM):
    """pytorch-grad-cam's in milliseconds, with the arbitrary sign of the first component such that the heat lies where
    the features are strong. (With the larger extreme positive, as Chung and Ying, 2025, doi 10.3390/app15137562, the
    air around a brain glowed.)"""

    def get_cam_image(self, input_tensor, target_layer, target_category, activations, grads, eigen_smooth):
        """Maps (B, K, h, w) projected on their first principal component over the voxels, (B, h, w)."""
        return np.stack([_first_component(maps) for maps in activations])


def _first_component(maps: np.ndarray) -> np.ndarray:
    features = maps.reshape(len(maps), -1).T
    features = features - features.mean(0)
    direction = np.linalg.svd(features, full_matrices=False)[2][0]
    return (features @ (direction if direction.sum() >= 0 else -direction)).reshape(maps.shape[1:])


def slice_layers(model: RPN) -> Layers:
    """The layers of the backbone, with the sizes (K, h, w) of their maps of a square slice."""
    backbone, side = model.detector.backbone, model.detector.image_size
    image = torch.zeros(1, model.hparams["in_channels"], side, side, device=model.device)
    return layers_of(backbone, image, "backbone", _as_one_map)


def find_layers(model: RPN, names: Sequence[str] | None, argument: str = "--target_layers") -> list[nn.Module]:
    """The named layers of the backbone, e.g. ``backbone.fpn``; raises as `Layers.find`."""
    return slice_layers(model).find(names, argument) if names else []


def _as_one_map(output):
    """The levels of the feature pyramid as channels of one map (B, K, h, w); any other output as it is.

    As `pytorch_grad_cam.utils.reshape_transforms.fasterrcnn_reshape_transform`, but of the finest level's size: a
    lesion is less than a pixel of the coarsest.
    """
    if not (isinstance(output, dict) and "pool" in output):
        return output
    size = output["0"].shape[-2:]
    return torch.cat([F.interpolate(level.abs(), size, mode="bilinear") for level in output.values()], dim=1)


def eigencam(model: RPN, prepared: PreparedScan, slices: list[int], layers: list[nn.Module]) -> dict[int, np.ndarray]:
    """What stands out to layers (`find_layers`), on average, in slices with brain.

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
