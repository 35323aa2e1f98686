"""Heads of the synthetic cohort: the MNI152 templates that nilearn ships, warped and painted.

All geometry is drawn in millimetres of template space, so that one seed gives the same heads at any spacing.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

FIELD_OF_VIEW_MM = (197, 233, 189)  # of the template, along H, W, D
MIDLINE_MM = 98.0  # the plane between the hemispheres, along H
VENTRICLES_MM = np.array([98.0, 120.0, 88.0])


@dataclass(frozen=True)
class Head:
    """A warped head on its grid (H, W, D): where each voxel lies in the template (mm) and what it is made of."""

    template_mm: np.ndarray  # (3, H, W, D)
    t1: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    brain: np.ndarray


# --- templates and fields ------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def load_templates(smoothing_mm: float) -> dict[str, np.ndarray]:
    """The MNI152 maps ``t1``, ``gm``, ``wm`` and ``brain`` at 1 mm, (197, 233, 189) float32 in [0, 1]."""
    import nibabel as nib
    import nilearn.datasets
    from scipy.ndimage import gaussian_filter

    folder = Path(nilearn.datasets.__file__).parent / "data"
    maps = {}
    for tissue in ("t1", "gm", "wm"):
        image = nib.load(folder / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz")
        maps[tissue] = np.asarray(image.dataobj, np.float32) / 255
    maps["brain"] = (maps["t1"] > 0).astype(np.float32)
    return {name: gaussian_filter(array, smoothing_mm) for name, array in maps.items()}


def smooth_field(points_mm: np.ndarray, wavelength_mm: float, rng: np.random.Generator, waves: int = 12) -> np.ndarray:
    """A random smooth field of unit variance: a sum of plane waves about as long as `wavelength_mm`.

    Args:
        points_mm: (3, ...).

    Returns:
        (...) float32.
    """
    direction = rng.normal(size=(waves, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wave = (2 * np.pi / wavelength_mm * rng.uniform(0.6, 1.4, (waves, 1)) * direction).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, waves).astype(np.float32)
    field = np.zeros(points_mm.shape[1:], np.float32)
    for k, p in zip(wave, phase, strict=True):
        field += np.cos(np.tensordot(k, points_mm, 1) + p)
    return field * np.float32((2 / waves) ** 0.5)


def grid_mm(spacing: float) -> np.ndarray:
    """(3, H, W, D) float32: centres of voxels of `spacing` mm over the template's field of view."""
    axes = []
    for extent in FIELD_OF_VIEW_MM:
        n = round(extent / spacing)
        axes.append((np.arange(n, dtype=np.float32) - (n - 1) / 2) * spacing + (extent - 1) / 2)
    return np.stack(np.meshgrid(*axes, indexing="ij"))


# --- anatomy -------------------------------------------------------------------------------------------


def warp_head(spacing: float, warp_mm: float, rng: np.random.Generator) -> Head:
    """Sample the templates through a random affine map, a smooth warp, larger ventricles and perhaps a flip."""
    from scipy.ndimage import map_coordinates

    points = _deform(grid_mm(spacing), warp_mm, rng)
    maps = load_templates(0.4 * spacing if spacing > 1 else 0.0)
    t1, grey, white, brain = (map_coordinates(maps[m], points, order=1) for m in ("t1", "gm", "wm", "brain"))
    return Head(points, t1, grey, white, brain)


def _deform(points: np.ndarray, warp_mm: float, rng: np.random.Generator) -> np.ndarray:
    centre = (np.array(FIELD_OF_VIEW_MM, np.float32)[:, None, None, None] - 1) / 2
    matrix = (random_rotation(rng, degrees=4) @ np.diag(rng.uniform(0.93, 1.07, 3))).astype(np.float32)
    shift = rng.uniform(-3, 3, (3, 1, 1, 1)).astype(np.float32)
    moved = np.tensordot(matrix, points - centre, 1) + centre + shift
    moved += np.stack([warp_mm * smooth_field(moved, 90, rng) for _ in range(3)])
    from_ventricles = moved - VENTRICLES_MM.astype(np.float32)[:, None, None, None]
    nearness = np.exp(-(from_ventricles**2).sum(0) / (2 * 22.0**2))
    moved -= rng.uniform(0, 0.35) * nearness * from_ventricles
    if rng.random() < 0.5:
        moved[0] = 2 * MIDLINE_MM - moved[0]
    return moved


def random_rotation(rng: np.random.Generator, degrees: float | None = None) -> np.ndarray:
    """A random rotation about a random axis: by a few `degrees`, or by any angle if None."""
    from scipy.spatial.transform import Rotation

    if degrees is None:
        return Rotation.random(rng=rng).as_matrix()
    return Rotation.from_rotvec(rng.normal(0, degrees, 3), degrees=True).as_matrix()


def paint_tissue(head: Head, levels: dict[str, float]) -> np.ndarray:
    """T1w intensities of the tissues, with a share of the template's own detail. (H, W, D) float32."""
    fluid = np.clip(head.brain - head.grey - head.white, 0, None)
    painted = levels["white"] * head.white + levels["grey"] * head.grey + levels["fluid"] * fluid
    template = 0.85 * head.white + 0.62 * head.grey + 0.25 * fluid
    return np.clip(painted + 0.3 * levels["white"] * (head.t1 - template) * head.brain, 0, None)
