"""What the scanner adds: receive field, susceptibility, slices, resolution, motion, ghosts, noise and ringing.

`draw_scanner` draws for each scan how strong each is. At variety 0 there are a slight receive field, susceptibility,
noise and ringing alone. At 1 the ranges are half as wide again as in real scans; between, both are mixed linearly, and
what variety 0 lacks appears with a probability and a strength in proportion to variety.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import circulant
from scipy.ndimage import gaussian_filter, map_coordinates

from data.phantom.contrast import Modality
from data.phantom.heads import VENTRICLES_MM, Field, Grid, Head, square_distance

BIAS_MM = 220  # wavelength of the receive field
# Log standard deviation of that field at variety 1. Uncorrected scans vary by 10 to 40 % (Vovk et al., 2007,
# 10.1109/TMI.2006.891486), a standard deviation of up to 0.15, and half as much again.
BIAS = (0.0, 0.22)
COIL_MM, COIL_DISTANCE_MM = 45.0, 90.0  # reach of a near coil element, and its distance from the middle of the brain
VERTEX_MM = (112.0, 152.0)  # height in the template where the signal begins to fall, and of the vertex
# Places in MNI mm (mirrored), where air in the skull disturbs the field, and the reach of its effects in mm.
AIR_MM, PILE_UP_MM, DROPOUT_MM = ((8, 36, -32), (50, -22, -34)), 20.0, 13.0
FARTHER, SHIFT_MM = 0.5, 4.0  # at most: growth of that reach, and distortion along phase encoding
# Thin sheets beside air, in which signal piles up: four real DWI have voxels of 5.9 to 8.1 times the median there. The
# gain is at most that, at variety 1; sheets are where a smooth field is near 0, in a share of its standard deviation.
SHEET, SHEET_MM, SHEET_WIDTH = 8.0, 40.0, 0.25
RINGING_VOXELS = 0.8  # width of the blur whose difference to the scan an interpolating spline overshoots by
SNR = (8.0, 60.0)  # of white matter, log-uniform
# As acquired, log-uniform, before interpolation to the scan's grid: 0.45 to 2 mm in plane, and half as much again.
SLICE_MM, IN_PLANE_MM = (1.0, 6.5), (0.45, 3.0)
GAP = 0.3  # share of a slice's distance that is not excited, at most
GAIN, SLICES = 0.06, 200  # log standard deviation from slice to slice, at most
MOTION, MOTION_MM, BLUR_MM = 0.2, (6.0, 60.0), 1.2  # at most: share of the signal in ghosts, their distance, blur


@dataclass(frozen=True)
class Scanner:
    """How one scan was taken; what is 0 is absent."""

    noise: float  # standard deviation of the complex noise
    bias: float  # log standard deviation of the smooth receive field
    coil: float  # log gain beside a near coil element
    coil_mm: np.ndarray  # (3,) its place in template mm
    vertex: float  # log gain lost at the vertex
    reach: float  # factor on that of air
    pile_up: float  # gain beside air
    sheet: float  # and that in thin sheets
    shift_mm: float  # distortion beside air
    slice_mm: float  # distance of the slices; at most the grid's: its slices are those acquired
    gap: float
    gain: float
    in_plane_mm: float
    is_linear: bool  # interpolated from those voxels linearly, else by filling k-space with zeros
    apodisation: float  # 0: k-space is cut off sharply, 1: it fades to 0 (Hann)
    ghost: float  # of half the field of view
    motion: float
    motion_mm: float
    blur_mm: float
    gains: np.ndarray  # of slices, (N,) standard normal, repeated where there are more


def draw_scanner(modality: Modality, levels: dict[str, float], variety: float, rng: np.random.Generator) -> Scanner:
    def some(most: float) -> float:
        is_there, share = rng.random(2).tolist()
        return most * variety * share if is_there < variety else 0.0

    def acquired(least: float, most: float) -> float:
        is_there, share = rng.random(2).tolist()
        return least * (most / least) ** share if is_there < variety else 0.0

    snr = SNR[0] * (SNR[1] / SNR[0]) ** rng.random()
    # The back of the head lies on the coil, nearer to one side of it.
    direction = rng.normal((0.7 * rng.choice([-1, 1]), -1.0, -0.5), 0.6)
    return Scanner(
        noise=(1 - variety) * levels["noise"] + variety * levels["white"] / snr,
        bias=(1 - variety) * modality.bias + variety * rng.uniform(*BIAS),
        coil=some(modality.coil),
        coil_mm=VENTRICLES_MM + COIL_DISTANCE_MM * direction / np.linalg.norm(direction),
        vertex=some(modality.vertex),
        reach=1 + some(FARTHER),
        pile_up=modality.pile_up * (1 + some(FARTHER)),
        shift_mm=some(SHIFT_MM) * float(rng.choice([-1, 1])) if modality.pile_up else 0.0,
        slice_mm=acquired(*SLICE_MM),
        gap=some(GAP),
        gain=some(GAIN),
        in_plane_mm=acquired(*IN_PLANE_MM),
        is_linear=rng.random() < variety,
        apodisation=some(1.0),
        ghost=some(modality.ghost),
        motion=some(MOTION),
        motion_mm=rng.uniform(*MOTION_MM),
        blur_mm=some(BLUR_MM),
        gains=rng.standard_normal(SLICES, np.float32),
        sheet=SHEET * variety * rng.random() if modality.pile_up else 0.0,
    )


def receive_field(head: Head, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """The factor (H, W, D) of the receive field, and of pile-up and dropout beside air."""
    log_gain = scanner.bias * Field.draw(BIAS_MM, rng).on(head.grid)
    if scanner.coil:
        square = sum((axis - float(place)) ** 2 for axis, place in zip(head.template_mm, scanner.coil_mm, strict=True))
        log_gain += scanner.coil * np.exp(-square / (2 * COIL_MM**2))
    if scanner.vertex:
        begin, vertex = VERTEX_MM
        log_gain -= scanner.vertex * (np.clip(head.template_mm[2] - begin, 0, None) / (vertex - begin)) ** 2
    gain = np.exp(log_gain)
    if scanner.pile_up:
        strength = np.clip(1 + 0.8 * Field.draw(30, rng).on(head.grid), 0, None)
        sheets = scanner.sheet * np.exp(-((Field.draw(SHEET_MM, rng).on(head.grid) / SHEET_WIDTH) ** 2))
        for place in AIR_MM:
            square = square_distance(head.template_mm, place)
            near = np.exp(-square / (scanner.reach * PILE_UP_MM) ** 2)
            gain *= (1 + scanner.pile_up * strength * near) * (1 + sheets * near**2)
            gain *= 1 - np.exp(-square / (scanner.reach * DROPOUT_MM) ** 2)
    return gain


def measure(
    signal: np.ndarray, head: Head, modality: Modality, scanner: Scanner, rng: np.random.Generator
) -> np.ndarray:
    """The scan of a noise-free signal; the brain's voxels do not depend on the signal outside of it."""
    grid = head.grid
    window = [_window(grid, axis, scanner) for axis in (0, 1)]
    noise = list(rng.standard_normal((2, *signal.shape), np.float32) * np.float32(scanner.noise))
    for axis, transfer in enumerate(window):
        if transfer.min() < 1:  # noise as strong as before, in fewer samples of k-space
            norm = np.linalg.norm(np.fft.irfft(transfer, grid.shape[axis]))
            noise = [_convolve(part, axis, transfer / norm) for part in noise]
    transfers = window[0], window[1] * _movement(grid, scanner)
    scan = _acquire(signal, noise, transfers, head, scanner)
    if signal[~head.brain].any():
        alone = _acquire(np.where(head.brain, signal, 0), noise, transfers, head, scanner)
        scan[head.brain] = alone[head.brain]
    if modality.ringing:
        brain_alone = np.where(head.brain, scan, 0)
        overshoot = modality.ringing * (brain_alone - gaussian_filter(brain_alone, RINGING_VOXELS))
        scan[head.brain] += overshoot[head.brain]
    return scan


def _acquire(signal: np.ndarray, noise: list, transfers: tuple, head: Head, scanner: Scanner) -> np.ndarray:
    """(H, W, D) float32 magnitude: H reads out, W encodes phase, slices lie along D."""
    if scanner.shift_mm:
        signal = _distort(signal, head, scanner.shift_mm)
    for axis, transfer in enumerate(transfers):
        signal = _convolve(signal, axis, transfer)
    interpolation = None
    if scanner.slice_mm > head.grid.spacing_hwd[2]:
        excitation, interpolation, nearest = _slices(head.grid, scanner)
        signal, noise = signal @ excitation, [part[:, :, nearest] for part in noise]
    if scanner.gain:
        signal = signal * np.exp(scanner.gain * np.resize(scanner.gains, signal.shape[2]))
    # The magnitude of a complex signal with Gaussian noise (Gudbjartsson and Patz, 1995, 10.1002/mrm.1910340618).
    scan = np.hypot(signal + noise[0], noise[1]).astype(np.float32)
    for axis in (0, 1):
        if scanner.is_linear and scanner.in_plane_mm > head.grid.spacing_hwd[axis]:
            scan = _along(_resampling(head.grid.axes_mm[axis], scanner.in_plane_mm), scan, axis)
    return scan if interpolation is None else scan @ interpolation


def _window(grid: Grid, axis: int, scanner: Scanner) -> np.ndarray:
    """What of k-space is sampled along an axis, and how it fades: factors for `np.fft.rfft`."""
    size = grid.spacing_hwd[axis]
    share = np.fft.rfftfreq(grid.shape[axis], size) * 2 * max(size, scanner.in_plane_mm)
    return (share < 1 + 1e-6) * (1 - scanner.apodisation * np.sin(np.pi / 2 * share) ** 2)


def _movement(grid: Grid, scanner: Scanner) -> np.ndarray:
    """Blur and ghosts along the phase encoding, as factors for `np.fft.rfft`."""
    k = 2 * np.pi * np.fft.rfftfreq(grid.shape[1], grid.spacing_hwd[1])
    blur = np.exp(-((k * scanner.blur_mm) ** 2) / 2)
    every_second = (-1.0) ** np.arange(len(k))  # moves the image by half the field of view
    return blur * (1 + scanner.motion * (np.cos(k * scanner.motion_mm) - 1)) + scanner.ghost * every_second


def _convolve(volume: np.ndarray, axis: int, transfer: np.ndarray) -> np.ndarray:
    if (transfer == 1).all():
        return volume
    return _along(circulant(np.fft.irfft(transfer, volume.shape[axis])).astype(np.float32), volume, axis)


def _along(matrix: np.ndarray, volume: np.ndarray, axis: int) -> np.ndarray:
    """The product of a matrix with each line of a volume along H (0) or W (1)."""
    return matrix @ volume if axis else np.tensordot(matrix, volume, 1)


def _linear(places: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """(P, S) float32, the weights of samples in their linear interpolation at places."""
    return np.array([np.interp(places, samples, each) for each in np.eye(len(samples), dtype=np.float32)], np.float32).T


def _resampling(places: np.ndarray, distance: float) -> np.ndarray:
    """(P, P) of an axis: what is left of a line that is sampled at a distance and interpolated back."""
    samples = np.arange(places[0], places[-1] + distance, distance)
    return _linear(places, samples) @ _linear(samples, places)


def _slices(grid: Grid, scanner: Scanner) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The shares (D, N) of voxels in N acquired slices, (N, D) of slices in voxels, and each slice's nearest voxel."""
    size, z = grid.spacing_hwd[2], grid.axes_mm[2]
    centres = np.arange(z[0] - (size - scanner.slice_mm) / 2, z[-1] + size / 2, scanner.slice_mm)
    half = scanner.slice_mm * (1 - scanner.gap) / 2
    above, below = np.add.outer(z, -centres - half), np.add.outer(z, half - centres)
    shares = np.clip(np.minimum(below, size / 2) - np.maximum(above, -size / 2), 0, None)
    nearest = np.abs(np.subtract.outer(centres, z)).argmin(1)
    return (shares / shares.sum(0)).astype(np.float32), _linear(z, centres).T, nearest


def _distort(signal: np.ndarray, head: Head, shift_mm: float) -> np.ndarray:
    """The signal moved along the phase encoding beside air, brighter where it is pressed together.

    The masks stay: at most half of `SHIFT_MM` at the usual variety, and in the base of the brain alone.
    """
    near_air = sum(np.exp(-square_distance(head.template_mm, place) / PILE_UP_MM**2) for place in AIR_MM)
    shift = shift_mm / head.grid.spacing_hwd[1] * near_air
    places = np.indices(signal.shape, np.float32)
    places[1] += shift
    return map_coordinates(signal, places, order=1) * np.clip(1 + np.gradient(shift, axis=1), 0, 3)
