"""Voxel grids of the synthetic cohort in millimetres, and smooth random fields on them."""

from dataclasses import dataclass, replace

import numpy as np

from data.files.space import Spacing

FIELD_OF_VIEW_MM = (197, 233, 189)  # of the template and of ATLAS v2.0, along H, W, D
SMOOTHING = 0.3  # of a voxel's size: the standard deviation of a box; voxels up to 1 mm show the templates as they are


@dataclass(frozen=True)
class Grid:
    """Voxels that fill the template's field of view about its middle, so that grids of any spacing share their place.

    The spacing is along (D, H, W), as everywhere in the project; arrays inside this package are (H, W, D).
    """

    spacing_mm: Spacing

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
