"""Random augmentations of training data, slices and windows alike: of dicts of an image in [0, 1] and label maps."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from monai import transforms

from data.batches.tissue import surrounding_tissue

LABELS = ("mask", "region")
EVERYTHING = ("image", *LABELS)
PROBABILITY = 0.5


def build_transforms(names: Sequence[str] | None, spatial_dims: int) -> transforms.Compose:
    """Random transforms for `spatial_dims` 2 (H, W) or 3 (D, H, W); `names` are those of ``--transforms``."""
    angle, in_3d = np.deg2rad(10), spatial_dims == 3
    mode = "trilinear" if in_3d else "bilinear"
    kinds: dict[str, partial] = {
        # Left and right are alike enough to swap; front and back or top and bottom are not.
        "flip": partial(transforms.RandFlipd, EVERYTHING, spatial_axis=spatial_dims - 2, allow_missing_keys=True),
        # Rotation within the axial plane alone: in 3D that is about the depth axis.
        "affine": partial(
            transforms.RandAffined,
            EVERYTHING,
            rotate_range=(angle, 0, 0) if in_3d else angle,
            scale_range=(0.1,) * spatial_dims,
            mode=("bilinear", *["nearest"] * len(LABELS)),
            padding_mode="zeros",
            allow_missing_keys=True,
        ),
        "contrast": partial(transforms.RandAdjustContrastd, "image", gamma=(0.7, 1.5)),
        "noise": partial(transforms.RandGaussianNoised, "image", std=0.05),
        "bias_field": partial(transforms.RandBiasFieldd, "image", coeff_range=(0.0, 0.2)),
        "resolution": partial(transforms.RandSimulateLowResolutiond, "image", upsample_mode=mode, zoom_range=(0.5, 1)),
        "lesion_contrast": partial(RandLesionContrastd, factor=(0.3, 1.2)),
    }
    return transforms.Compose([kinds[name](prob=PROBABILITY) for name in names or []])


class RandLesionContrastd(transforms.RandomizableTransform):
    """Scales how lesions differ from the tissue around them by a random `factor`: at 0 they vanish, at 1 they stay."""

    def __init__(self, prob: float, factor: tuple[float, float]) -> None:
        super().__init__(prob)
        self.factor = factor

    def __call__(self, item: dict) -> dict:
        self.randomize(None)
        image, lesion = np.asarray(item["image"]), np.asarray(item["mask"][0]) > 0.5
        if not self._do_transform or not lesion.any() or lesion.all():
            return item
        tissue = np.stack([surrounding_tissue(channel, lesion, ~lesion & (channel > 0)) for channel in image])
        scaled = tissue + self.R.uniform(*self.factor) * (image - tissue)
        return {**item, "image": np.where(lesion, scaled, image).clip(0, 1)}


def apply_transforms(compose: transforms.Compose, item: dict, rng: np.random.Generator) -> dict:
    """Apply with the randomness of `rng` alone, so that an item is the same whichever process makes it."""
    compose.set_random_state(seed=int(rng.integers(2**31)))
    return {key: np.asarray(value) for key, value in compose(item).items()}
