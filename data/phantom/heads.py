"""Brains of the synthetic cohort, the MNI152 templates that nilearn ships, warped; its grids and random fields.

All geometry is drawn in millimetres of template space, so that one seed gives the same heads at any spacing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from data.files.space import Spacing
from data.scans.mni import read_template

FIELD_OF_VIEW_MM = (197, 233, 189)  # of the template and of ATLAS v2.0, along H, W, D
SMOOTHING = 0.3  # of a voxel's size: the standard deviation of a box; voxels up to 1 mm show the templates as they are
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
class Grid:
    """Voxels that fill the template's field of view about its middle: grids of any spacing share their place."""

    spacing_mm: Spacing  # along (D, H, W), as everywhere in the project; arrays inside this package are (H, W, D)

    @property
    def spacing_hwd(self) -> tuple[float, float, float]:
        d, h, w = self.spacing_mm
        return h, w, d

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, D)."""
        sizes = zip(FIELD_OF_VIEW_MM, self.spacing_hwd, strict=True)
        h, w, d = (max(round(extent / size), 1) for extent, size in sizes)
        return h, w, d

    @property
    def smoothing_mm(self) -> tuple[float, float, float]:
        """Standard deviations along H, W, D of the Gaussian of a voxel's partial volume."""
        h, w, d = (SMOOTHING * size if size > 1 else 0.0 for size in self.spacing_hwd)
        return h, w, d

    @property
    def axes_mm(self) -> list[np.ndarray]:
        """Voxel centres along H, W and D, float64."""
        sizes = zip(FIELD_OF_VIEW_MM, self.spacing_hwd, self.shape, strict=True)
        return [(np.arange(n) - (n - 1) / 2) * size + (extent - 1) / 2 for extent, size, n in sizes]


@dataclass(frozen=True)
class Field:
    """A smooth random field of unit variance over space: a sum of N plane waves."""

    wave: np.ndarray  # (N, 3), radians per mm along H, W, D
    phase: np.ndarray  # (N,)
    amplitude: np.ndarray  # (N,)

    @staticmethod
    def draw(wavelength_mm: float, rng: np.random.Generator, waves: int = 12) -> "Field":
        """Waves of about `wavelength_mm` in all directions."""
        direction = rng.normal(size=(waves, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        wave = 2 * np.pi / wavelength_mm * rng.uniform(0.6, 1.4, (waves, 1)) * direction
        return Field(wave, rng.uniform(0, 2 * np.pi, waves), np.full(waves, (2 / waves) ** 0.5))

    def after(self, matrix: np.ndarray, offset: np.ndarray) -> "Field":
        """The field whose value at x is this one's at ``matrix @ x + offset``."""
        return replace(self, wave=self.wave @ matrix, phase=self.phase + self.wave @ offset)

    def at(self, points_mm: np.ndarray) -> np.ndarray:
        """(...) float32 at (3, ...) points."""
        field = np.zeros(points_mm.shape[1:], np.float32)
        waves = (part.astype(np.float32) for part in (self.wave, self.phase, self.amplitude))
        for wave, phase, amplitude in zip(*waves, strict=True):
            field += amplitude * np.cos(np.tensordot(wave, points_mm, 1) + phase)
        return field

    def on(self, grid: Grid) -> np.ndarray:
        """(H, W, D) float32: on a grid a wave is a product over the axes, and the sum one matrix product."""
        h, w, d = (np.exp(1j * np.outer(axis, self.wave[:, i])) for i, axis in enumerate(grid.axes_mm))
        left = h * np.exp(1j * self.phase) * self.amplitude
        right = (w[:, None] * d[None]).reshape(-1, len(self.phase))
        pairs = (left.real, left.imag), (right.real, -right.imag)
        first, second = (np.concatenate(pair, 1).astype(np.float32) for pair in pairs)
        return (first @ second.T).reshape(grid.shape)


def draw_fine(wavelength_mm: float, rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """(H, W, D) float32, a field of many waves on a grid, after the Gaussian of its voxels' partial volume."""
    field = Field.draw(wavelength_mm, rng, waves=24)
    visible = np.exp(-((field.wave * grid.smoothing_mm) ** 2).sum(1) / 2)
    return replace(field, amplitude=field.amplitude * visible).on(grid)


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

    def box(self, place_mm: Sequence[float] | np.ndarray, reach_mm: float) -> tuple[slice, slice, slice]:
        """The voxels within `reach_mm` of a place in the template, and some around them."""
        shape, spacing = np.array(self.brain.shape), np.array(self.grid.spacing_hwd)
        voxel = shape / 2
        for _ in range(8):  # the warp is smooth: its inverse is a fixed point
            at = np.clip(np.rint(voxel).astype(int), 0, shape - 1)
            voxel = voxel + self.directions * (np.array(place_mm) - self.template_mm[(slice(None), *at)]) / spacing
            voxel = np.clip(voxel, 0, shape - 1)
        reach = (reach_mm + 2) / spacing + 1
        low, high = np.floor(voxel - reach).astype(int), np.ceil(voxel + reach).astype(int) + 1
        h, w, d = (slice(max(a, 0), max(b, 0)) for a, b in zip(low, high, strict=True))
        return h, w, d

    @property
    def directions(self) -> np.ndarray:
        """(3,) 1 or -1: whether the template's axes run along the grid's; a flipped head has its first reversed."""
        ends = self.template_mm[0, -1, 0, 0] - self.template_mm[0, 0, 0, 0]
        return np.array([np.sign(ends), 1, 1])


@dataclass(frozen=True)
class Atrophy:
    """How much of its tissue a head has lost to fluid."""

    sulci: float  # log of the factor on the weight of fluid where there are folds
    push_at: Callable[[np.ndarray], np.ndarray]  # of (3, N) points: (3, N) mm to what wider ventricles push there


@lru_cache(maxsize=2)
def load_templates(smoothing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> dict[str, np.ndarray]:
    """The MNI152 maps ``t1``, ``gm``, ``wm`` and ``brain`` at 1 mm, (197, 233, 189) float32 in [0, 1]."""
    if any(smoothing_mm):
        return {name: gaussian_filter(array, smoothing_mm) for name, array in load_templates().items()}
    maps = {tissue: np.ascontiguousarray(read_template(tissue)[0].transpose(1, 2, 0)) for tissue in ("t1", "gm", "wm")}
    return {**maps, "brain": (maps["t1"] > 0).astype(np.float32)}


def warp_head(grid: Grid, warp_mm: float, rng: np.random.Generator, atrophy: Atrophy | None = None) -> Head:
    """Sample the templates through a random affine map, a smooth warp, larger ventricles and perhaps a flip."""
    points = _deform(grid, warp_mm, rng, atrophy)
    maps = load_templates(grid.smoothing_mm)
    brain = map_coordinates(maps["brain"], points, order=1) > 0.5
    t1, grey, white = (map_coordinates(maps[name], points[:, brain], order=1) for name in ("t1", "gm", "wm"))
    fluid = np.clip(1 - grey - white, 0, None)
    detail = t1 - (0.85 * white + 0.62 * grey + 0.25 * fluid)
    tissue = grey + white > 0.5
    sulcus, folded = _sulci(grid, points[:, brain], brain, rng)
    grey, white, fluid = grey**SHARPNESS, (white / sulcus) ** SHARPNESS, FLUID_WEIGHT * (fluid * sulcus) ** SHARPNESS
    if atrophy:
        fluid *= np.exp(np.float32(atrophy.sulci) * folded)
    whole = grey + white + fluid
    volumes = [np.zeros(brain.shape, part.dtype) for part in (detail, grey, white, tissue)]
    for volume, values in zip(volumes, (detail, grey / whole, white / whole, tissue), strict=True):
        volume[brain] = values
    detail, grey, white, tissue = volumes
    return Head(grid, points, detail, grey, white, tissue, brain)


def _sulci(
    grid: Grid, points: np.ndarray, brain: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) factor for the voxels of the brain, at `points`: above 1 where a sulcus may be, below it in a gyrus.

    And (N,) 1 where there are folds, 0 where there are none.
    """
    folds = draw_fine(FOLDS_MM, rng, grid)[brain]
    strength = np.full(len(folds), FOLD_STRENGTH, np.float32)
    for centre, half in UNFOLDED:
        radius = np.sqrt(sum(((p - c) / h) ** 2 for p, c, h in zip(points, centre, half, strict=True)))
        strength *= np.clip((radius - 0.9) / 0.3, 0, 1)
    # Sulci follow the zeros of the field.
    return np.exp(strength * (1 - 1.6 * np.abs(folds))), strength / np.float32(FOLD_STRENGTH)


def _deform(grid: Grid, warp_mm: float, rng: np.random.Generator, atrophy: Atrophy | None) -> np.ndarray:
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
    if atrophy:
        near = (np.abs(from_ventricles) < np.float32(70)).all(0)
        moved[:, near] += atrophy.push_at(moved[:, near])
    if rng.random() < 0.5:
        moved[0] = 2 * MIDLINE_MM - moved[0]
    return moved


def square_distance(points: np.ndarray, place: Sequence[float], units: Sequence[float] = (1, 1, 1)) -> np.ndarray:
    """Squared distance of (3, ...) points in template mm to a place in MNI mm and its mirror image, in units of mm."""
    square = ((np.abs(points[0] - MIDLINE_MM) - place[0]) / units[0]) ** 2
    for axis in (1, 2):
        square += ((points[axis] - ORIGIN_MM[axis] - place[axis]) / units[axis]) ** 2
    return square
