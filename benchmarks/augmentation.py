"""Time the Poisson transfer of lesions, alone and whole, and measure how its rims look.

    python benchmarks/augmentation.py

Draws six synthetic scans at 1 mm, placed on 189 x 192 x 192. The blend is timed beside a plain sparse direct solve
of the whole slice, and of the bounding box of a 3D lesion; the whole transfer is the search for partners, the
variation and the blend. Rims are judged by the mean first and second difference of intensity across the borders of new
lesions, in units of the 95th percentile of the same differences in the recipient's healthy brain. How dark new lesions
are beside the scans' own is told for several rims, at 1 mm and at 2 mm.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from augmentation.cohort import Cohort, Scan, index_cohort
from augmentation.pairs import Criteria, find_pairs, join
from augmentation.poisson import blend, soft_rim
from augmentation.transfer import PLACES, Settings, augment
from data.files.space import cut
from data.files.volumes import read_volume, write_volume
from data.scans.cohort import pair_cases
from data.scans.grid import Grid
from utils.scores.lesions import TWENTY_SIX_CONNECTED

GRIDS = {1: Grid((1, 189, 192, 192)), 2: Grid((1, 94, 98, 116))}  # by spacing in mm
RIMS = (3.0, 1.0, 0.0)
SETTINGS = Settings(
    mode="slice", criteria=Criteria(), donors=8, slices=0.5, lesions=2, max_angle=15.0, min_scale=1.0, max_erosion=2,
    mixed=False, rim=RIMS[0], place="donor", seed=42,
)  # fmt: skip


def draw_cohort(folder: Path, spacing: int) -> Cohort:
    """Six synthetic scans, their arrays on the grid."""
    command = ["-m", "data.phantom", "--out_dir", folder, "--n_subjects", 6, "--spacing", spacing, "--seed", 5]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, capture_output=True)
    grid = GRIDS[spacing]
    for path in [*(folder / "Scans").iterdir(), *(folder / "Masks").iterdir()]:
        write_volume(path, _in_the_middle(read_volume(path).array, grid.shape))
    return index_cohort(pair_cases([folder / "Scans"], [folder / "Masks"]), grid, folder / "cache", 0)


def _in_the_middle(array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A (C, D, H, W) array cropped or padded to `shape` about its middle."""
    return cut(array, tuple((old - new) // 2 for old, new in zip(array.shape[1:], shape, strict=True)), shape)


def plain_solve(recipient: np.ndarray, donor: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The same blend with an equation for every voxel, which outside the region says that nothing changes."""
    parts = [_second_difference(n) for n in recipient.shape]
    laplacian = sparse.csr_array(parts[0])
    for part in parts[1:]:
        laplacian = sparse.kronsum(part, laplacian, format="csr")
    inside = sparse.diags_array(region.ravel().astype(float))
    matrix = inside @ laplacian + sparse.diags_array((~region).ravel().astype(float))
    right = np.where(region.ravel(), laplacian @ donor.ravel(), recipient.ravel())
    return spsolve(matrix.tocsc(), right).reshape(recipient.shape)


def _second_difference(n: int) -> sparse.dia_array:
    ends = np.full(n, 2.0)
    ends[[0, -1]] = 1
    return sparse.diags_array([ends, -np.ones(n - 1), -np.ones(n - 1)], offsets=[0, 1, -1])


def seconds(function: Callable, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def ball(shape: tuple[int, ...], centre: tuple[float, ...], volume: float) -> np.ndarray:
    """A disc or ball of `volume` voxels."""
    radius = (volume / np.pi) ** 0.5 if len(shape) == 2 else (volume * 0.75 / np.pi) ** (1 / 3)
    return sum((x - c) ** 2 for x, c in zip(np.indices(shape), centre, strict=True)) < radius**2


def compare_blends(title: str, recipient: np.ndarray, region: np.ndarray, repeats: int) -> None:
    donor = soft_rim(np.full_like(recipient, 20), np.full_like(recipient, 60), region, SETTINGS.rim)
    images = recipient.astype(float), donor.astype(float), region
    ours, plain = seconds(lambda: blend(*images), repeats), seconds(lambda: plain_solve(*images), 1)
    difference = np.abs(blend(*images) - plain_solve(*images)).max() / np.ptp(recipient)
    print(f"{title:42} {1000 * ours:8.1f} ms, plain solve {plain:6.2f} s, {plain / ours:5.0f} times as long")
    print(f"{'':42} largest difference {difference:.0e} of the range")


def time_blends(cohort: Cohort) -> None:
    scan = cohort.load(0)
    z = int(scan.brain.sum((1, 2)).argmax())
    lesion = ball(scan.brain[z].shape, (90, 80), 0.05 * scan.brain[z].sum())
    compare_blends(f"blend, {lesion.sum()} of 192 x 192 pixels", scan.image[0, z], lesion, 20)
    window = scan.image[0, 70:108, 70:108, 60:98]
    lesion = ball(window.shape, (18.5, 18.5, 18.5), 20_000)
    compare_blends(f"blend, {lesion.sum() / 1000:.1f} cm3 at 1 mm", window, lesion, 5)


def time_transfer(cohort: Cohort, mode: str) -> None:
    settings = replace(SETTINGS, mode=mode, place=PLACES[mode])
    volumes = range(len(cohort.cases))
    for volume in volumes:
        assert cohort.load(volume).healthy.any()  # reading a scan is not what is timed
    start = time.perf_counter()
    made = [augment(cohort, volume, 0, settings) for volume in volumes]
    took, n = time.perf_counter() - start, sum(len(m.origins) for m in made)
    print(f"{f'whole transfer, --mode {mode}':42} {n / took:8.1f} lesions/s in one process ({n} lesions)")
    for order, what in ((1, "differences"), (2, "second differences")):
        new = [_jump(cohort.load(v), m.image[0], m.lesions, mode, order) for v, m in zip(volumes, made, strict=True)]
        scans = [scan for scan in map(cohort.load, volumes) if scan.lesions.any()]
        own = [_jump(scan, scan.image[0], None, mode, order) for scan in scans]
        print(f"{'':42} {what} across rims: {np.mean(new):.2f}, at most {max(new):.2f}; own lesions {np.mean(own):.2f}")


def _jump(scan: Scan, image: np.ndarray, lesions: np.ndarray | None, mode: str, order: int) -> float:
    """Mean difference of an order across the borders of new lesions (None: of the scan's own).

    Relative to the 95th percentile of the same differences in the healthy brain of the scan as it was.
    """
    region = scan.lesions if lesions is None else lesions & ~scan.lesions
    across, usual = [], []
    for axis in range(1 if mode == "slice" else 0, 3):
        inside, brain = (sliding_window_view(mask, order + 1, axis) for mask in (region, scan.healthy))
        across.append(np.abs(np.diff(image, order, axis))[inside.any(-1) & ~inside.all(-1)])
        usual.append(np.abs(np.diff(scan.image[0], order, axis))[brain.all(-1)])
    return float(np.concatenate(across).mean() / np.percentile(np.concatenate(usual), 95))


def compare_contrasts(cohort: Cohort) -> None:
    """How dark new lesions of volumes are for each of `RIMS`, beside the scans' own."""
    scans = [cohort.load(volume) for volume in range(len(cohort.cases))]
    own = np.median(np.concatenate([_contrasts(scan, scan.image[0], scan.lesions) for scan in scans]))
    for rim in RIMS:
        settings = replace(SETTINGS, mode="volume", place=PLACES["volume"], rim=rim)
        new = []
        for volume, scan in enumerate(scans):
            for copy in range(5):
                made = augment(cohort, volume, copy, settings)
                new += _contrasts(scan, made.image[0], made.lesions & ~scan.lesions)
        print(f"{f'contrast with --rim {rim:g}':42} {np.median(new):.2f}; own lesions {own:.2f}")


def _contrasts(scan: Scan, image: np.ndarray, lesions: np.ndarray) -> list[float]:
    """By what share the mean of each lesion is below the median of the healthy brain within three voxels of it."""
    labels, n = ndimage.label(lesions, TWENTY_SIX_CONNECTED)
    brain, contrasts = scan.healthy & ~ndimage.binary_dilation(lesions), []
    for i in range(1, n + 1):
        near = ndimage.binary_dilation(labels == i, iterations=3) & brain
        if near.any():
            contrasts.append(1 - image[labels == i].mean() / np.median(image[near]))
    return contrasts


def time_search(cohort: Cohort) -> None:
    """Pairs of one scan's healthy slices in cohorts that repeat the drawn scans."""
    index, rng = cohort.index, np.random.default_rng(0)
    n_drawn = len(cohort.cases)
    for n in (10, 100):
        copies = [replace(index, volume=index.volume + n_drawn * i) for i in range(-(-n // n_drawn))]
        many = join(copies)
        donors = (many.volume < n) & (many.volume > 0)
        healthy = many.of_volume(0)[~many.sick[many.of_volume(0)]]

        def read(row: int, many=many):
            scan, z = cohort.load(many.volume[row] % n_drawn), many.z[row]
            return scan.scaled[z].astype(np.float32), scan.brain[z]

        start = time.perf_counter()
        pairs = find_pairs(many, healthy, donors, read, rng, Criteria())
        took = time.perf_counter() - start
        print(f"{f'search among {n} volumes':42} {took:8.2f} s for {len(healthy)} slices of a scan, {len(pairs)} pairs")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cohort = draw_cohort(Path(folder) / "1mm", spacing=1)
        time_blends(cohort)
        for mode in ("slice", "volume"):
            time_transfer(cohort, mode)
        time_search(cohort)
        for spacing, scans in ((1, cohort), (2, draw_cohort(Path(folder) / "2mm", spacing=2))):
            print(f"at {spacing} mm")
            compare_contrasts(scans)


if __name__ == "__main__":
    main()
