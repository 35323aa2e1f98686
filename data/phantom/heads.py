"""Brains of the synthetic cohort: the MNI152 templates that nilearn ships, warped.

All geometry is drawn in millimetres of template space, so that one seed gives the same heads at any spacing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from data.phantom.fields import FIELD_OF_VIEW_MM, Field, Grid, draw_fine

MIDLINE_MM = 98.0  # the plane between the hemispheres, along H
ORIGIN_MM = (98.0, 134.0, 72.0)  # where MNI's (0, 0, 0), the anterior commissure, lies in the field of view
VENTRICLES_MM = np.array([98.0, 120.0, 88.0])
# How much larger the template is than a head: its brain mask holds 1,887 cm3, an adult's brain with CSF 1,200 to 1,800.
SHRINKAGE, AXIS_SHRINKAGE = (1.04, 1.14), (0.98, 1.02)
# The templates are means over 152 heads: their tissue maps are blurred and their sulci all but closed. The share of a
# tissue in a voxel is its map's power; random folds decide between gyri and sulci where the maps do not.
SHARPNESS, FLUID_WEIGHT = 2.0, 1.5
FOLDS_MM, FOLD_STRENGTH = 17.0, 1.1  # about two gyri's distance, and the log weight of fluid and against white matter
# Centre and half-axes in template mm of what has no gyri of that size: brain stem with cerebellum, deep grey matter.
UNFOLDED = (((98.0, 78.0, 28.0), (62.0, 50.0, 36.0)), ((98.0, 122.0, 74.0), (42.0, 48.0, 30.0)))


@dataclass(frozen=True)
class Head:
    """A warped brain on its grid, (H, W, D); shares and deviations are float32, 0 outside of the brain."""

    grid: Grid
    template_mm: np.ndarray  # (3, H, W, D) float32, the place of each voxel in the template
    detail: np.ndarray  # how the template's T1w deviates from the mean levels of its tissues
    grey: np.ndarray  # share of a voxel
    white: np.ndarray  # likewise
    tissue: np.ndarray  # bool, where lesions may lie: grey or white matter, as the template has it
    brain: np.ndarray  # bool, the true brain mask: tissue with the CSF of sulci and ventricles


@lru_cache(maxsize=2)
def load_templates(smoothing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> dict[str, np.ndarray]:
    """The MNI152 maps ``t1``, ``gm``, ``wm`` and ``brain`` at 1 mm, (197, 233, 189) float32 in [0, 1]."""
    if any(smoothing_mm):
        return {name: gaussian_filter(array, smoothing_mm) for name, array in load_templates().items()}
    import nilearn.datasets

    folder = Path(nilearn.datasets.__file__).parent / "data"
    maps = {}
    for tissue in ("t1", "gm", "wm"):
        image = nib.Nifti1Image.from_filename(folder / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz")
        maps[tissue] = np.asarray(image.dataobj, np.float32) / 255
    return {**maps, "brain": (maps["t1"] > 0).astype(np.float32)}


def warp_head(grid: Grid, warp_mm: float, rng: np.random.Generator) -> Head:
    """Sample the templates through a random affine map, a smooth warp, larger ventricles and perhaps a flip."""
    points = _deform(grid, warp_mm, rng)
    maps = load_templates(grid.smoothing_mm)
    brain = map_coordinates(maps["brain"], points, order=1) > 0.5
    t1, grey, white = (map_coordinates(maps[name], points[:, brain], order=1) for name in ("t1", "gm", "wm"))
    fluid = np.clip(1 - grey - white, 0, None)
    detail = t1 - (0.85 * white + 0.62 * grey + 0.25 * fluid)
    tissue = grey + white > 0.5
    sulcus = _sulci(grid, points[:, brain], brain, rng)
    grey, white, fluid = grey**SHARPNESS, (white / sulcus) ** SHARPNESS, FLUID_WEIGHT * (fluid * sulcus) ** SHARPNESS
    whole = grey + white + fluid
    volumes = [np.zeros(brain.shape, part.dtype) for part in (detail, grey, white, tissue)]
    for volume, values in zip(volumes, (detail, grey / whole, white / whole, tissue), strict=True):
        volume[brain] = values
    detail, grey, white, tissue = volumes
    return Head(grid, points, detail, grey, white, tissue, brain)


def _sulci(grid: Grid, points: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) factor for the voxels of the brain, at `points`: above 1 where a sulcus may be, below it in a gyrus."""
    folds = draw_fine(FOLDS_MM, rng, grid)[brain]
    strength = np.full(len(folds), FOLD_STRENGTH, np.float32)
    for centre, half in UNFOLDED:
        radius = np.sqrt(sum(((p - c) / h) ** 2 for p, c, h in zip(points, centre, half, strict=True)))
        strength *= np.clip((radius - 0.9) / 0.3, 0, 1)
    return np.exp(strength * (1 - 1.6 * np.abs(folds)))  # sulci follow the zeros of the field


def _deform(grid: Grid, warp_mm: float, rng: np.random.Generator) -> np.ndarray:
    """(3, H, W, D) float32: where in the template each voxel of the grid lies, in mm."""
    centre = (np.array(FIELD_OF_VIEW_MM) - 1) / 2
    sizes = rng.uniform(*SHRINKAGE) * rng.uniform(*AXIS_SHRINKAGE, 3)
    matrix = Rotation.from_rotvec(rng.normal(0, 4, 3), degrees=True).as_matrix() @ np.diag(sizes)
    offset = centre + rng.uniform(-3, 3, 3) - matrix @ centre
    h, w, d = np.meshgrid(*(axis.astype(np.float32) for axis in grid.axes_mm), indexing="ij", sparse=True)
    moved = np.empty((3, *grid.shape), np.float32)
    for axis, (row, start) in enumerate(zip(matrix.astype(np.float32), offset, strict=True)):
        moved[axis] = row[0] * h + row[1] * w + (row[2] * d + np.float32(start))
        moved[axis] += np.float32(warp_mm) * Field.draw(90, rng).after(matrix, offset).on(grid)
    from_ventricles = moved - VENTRICLES_MM.astype(np.float32)[:, None, None, None]
    nearness = np.exp(-(from_ventricles**2).sum(0) / np.float32(2 * 22.0**2))
    moved -= np.float32(rng.uniform(0, 0.35)) * nearness * from_ventricles
    if rng.random() < 0.5:
        moved[0] = 2 * MIDLINE_MM - moved[0]
    return moved


def square_distance(points: np.ndarray, place: Sequence[float], units: Sequence[float] = (1, 1, 1)) -> np.ndarray:
    """Squared distance of (3, ...) points in template mm to a place in MNI mm and its mirror image, in units of mm."""
    square = ((np.abs(points[0] - MIDLINE_MM) - place[0]) / units[0]) ** 2
    for axis in (1, 2):
        square += ((points[axis] - ORIGIN_MM[axis] - place[axis]) / units[axis]) ** 2
    return square
