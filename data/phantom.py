"""A synthetic stroke cohort that needs no download: ``python -m data.phantom --out_dir data/demo``.

Scans are warped MNI152 templates (the T1, grey and white matter maps that nilearn ships) with drawn lesions; they are
no patients, and no number measured on them says how well a method does on patients. All geometry is drawn in
millimetres of template space, so that one seed gives the same heads and lesions at any spacing.
"""

import argparse
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from utils.cli import extension, fraction, make_parser, non_negative_int, positive_float, positive_int, run
from utils.errors import UserError
from utils.files import atomic_path, read_json, write_json
from utils.parallel import map_in_order

FIELD_OF_VIEW_MM = (197, 233, 189)  # of the template, along H, W, D
MIDLINE_MM = 98.0  # the plane between the hemispheres, along H
VENTRICLES_MM = np.array([98.0, 120.0, 88.0])
# ATLAS v2.0: lesions of 0.01 to 497 cm3 with a median near 5 (Liew et al., 2022, 10.1038/s41597-022-01401-7).
MEDIAN_VOLUME_CM3, LOG_SPREAD, VOLUME_RANGE_CM3 = 5.0, 1.5, (0.01, 497.0)
LESIONS_PER_SCAN = {1: 0.65, 2: 0.25, 3: 0.10}
ONE_SIDED_SHARE = 0.9
RIM_MM = 0.6  # width of the partial-volume rim
COARSEST_SPACING_MM = 20  # beyond it a lesion of a single voxel exceeds ATLAS's median by far, or finds no tissue
SPACE = "space-MNI152NLin2009aSym"


@dataclass(frozen=True)
class Settings:
    """What fixes the files of a cohort, and so is kept beside them in ``phantom.json``."""

    n_subjects: int
    spacing: float
    seed: int
    ext: str
    healthy_fraction: float
    lesion_contrast: float
    warp_mm: float


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


def warp_head(settings: Settings, rng: np.random.Generator) -> Head:
    """Sample the templates through a random affine map, a smooth warp, larger ventricles and perhaps a flip."""
    from scipy.ndimage import map_coordinates

    points = _deform(grid_mm(settings.spacing), settings.warp_mm, rng)
    maps = load_templates(0.4 * settings.spacing if settings.spacing > 1 else 0.0)
    t1, grey, white, brain = (map_coordinates(maps[m], points, order=1) for m in ("t1", "gm", "wm", "brain"))
    return Head(points, t1, grey, white, brain)


def _deform(points: np.ndarray, warp_mm: float, rng: np.random.Generator) -> np.ndarray:
    centre = (np.array(FIELD_OF_VIEW_MM, np.float32)[:, None, None, None] - 1) / 2
    matrix = (_rotation(rng, degrees=4) @ np.diag(rng.uniform(0.93, 1.07, 3))).astype(np.float32)
    shift = rng.uniform(-3, 3, (3, 1, 1, 1)).astype(np.float32)
    moved = np.tensordot(matrix, points - centre, 1) + centre + shift
    moved += np.stack([warp_mm * smooth_field(moved, 90, rng) for _ in range(3)])
    from_ventricles = moved - VENTRICLES_MM.astype(np.float32)[:, None, None, None]
    nearness = np.exp(-(from_ventricles**2).sum(0) / (2 * 22.0**2))
    moved -= rng.uniform(0, 0.35) * nearness * from_ventricles
    if rng.random() < 0.5:
        moved[0] = 2 * MIDLINE_MM - moved[0]
    return moved


def _rotation(rng: np.random.Generator, degrees: float | None = None) -> np.ndarray:
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


# --- lesions -------------------------------------------------------------------------------------------


def draw_lesions(head: Head, spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Opacity of the scan's lesions, (H, W, D) float32 in [0, 1]; a voxel above 0.5 is lesion."""
    n = int(rng.choice(list(LESIONS_PER_SCAN), p=list(LESIONS_PER_SCAN.values())))
    total = min(MEDIAN_VOLUME_CM3 * np.exp(LOG_SPREAD * rng.normal()), VOLUME_RANGE_CM3[1])
    volumes = np.clip(total * rng.dirichlet(np.full(n, 2.0)), *VOLUME_RANGE_CM3)
    side = rng.choice([-1, 1])
    sides = [side if i == 0 or rng.random() < ONE_SIDED_SHARE else -side for i in range(n)]
    opacity = np.zeros(head.t1.shape, np.float32)
    for volume_cm3, hemisphere in zip(volumes, sides, strict=True):
        np.maximum(opacity, draw_lesion(head, spacing, volume_cm3, hemisphere, rng), out=opacity)
    return opacity


def draw_lesion(head: Head, spacing: float, volume_cm3: float, side: int, rng: np.random.Generator) -> np.ndarray:
    """Opacity of one lesion: an ellipsoid with a rough surface, cut to the tissue of one hemisphere.

    The level of the surface is chosen so that the lesion has `volume_cm3`, or fills the hemisphere.
    """
    centre, radius = _lesion_centre(side, rng), 10 * (3 * volume_cm3 / (4 * np.pi)) ** (1 / 3)
    stretch = np.exp(rng.normal(0, 0.25, 3))
    shape = _rotation(rng) @ np.diag(stretch / np.prod(stretch) ** (1 / 3))
    reach = max(3 * radius, 4 * spacing)
    tissue = (head.grey + head.white > 0.5) & ((head.template_mm[0] - MIDLINE_MM) * side > 0)
    near = np.abs(head.template_mm - centre.astype(np.float32)[:, None, None, None]).max(0) < reach
    inside = near & tissue
    points = head.template_mm[:, inside]
    distance = np.linalg.norm(np.linalg.solve(shape, points - centre[:, None]), axis=0)  # mm
    surface = radius * (1 + 0.25 * smooth_field(points, 1.6 * radius + 4, rng)) - distance
    opacity = np.zeros(tissue.shape, np.float32)
    opacity[inside] = _opacity(surface, round(1000 * volume_cm3 / spacing**3))
    return _one_blob(opacity)


def _opacity(surface: np.ndarray, voxels: int) -> np.ndarray:
    """A soft threshold of `surface` (mm, positive inside) that leaves `voxels` of it, at least one, above 0.5."""
    if len(surface) == 0:
        return surface
    voxels = min(max(voxels, 1), len(surface))
    ordered = np.sort(surface)[::-1]
    level = ordered[-1] - RIM_MM if voxels == len(surface) else (ordered[voxels - 1] + ordered[voxels]) / 2
    return 1 / (1 + np.exp(-np.clip((surface - level) / RIM_MM, -30, 30)))


def _one_blob(opacity: np.ndarray) -> np.ndarray:
    """Keep the largest component and the rim around it."""
    from scipy.ndimage import binary_dilation, label

    labels, n = label(opacity > 0.5, np.ones((3, 3, 3)))
    if n <= 1:
        return opacity
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return np.where(largest | (binary_dilation(largest, iterations=2) & (labels == 0)), opacity, 0)


def _lesion_centre(side: int, rng: np.random.Generator) -> np.ndarray:
    """A random place in the template's grey or white matter of one hemisphere, in mm."""
    candidates = _template_places("tissue")
    candidates = candidates[(candidates[:, 0] - MIDLINE_MM) * side > 4]
    return candidates[rng.integers(len(candidates))].astype(float)


@lru_cache(maxsize=2)
def _template_places(kind: str) -> np.ndarray:
    """(N, 3) template voxels of ``tissue`` or deep ``white`` matter, on a lattice of 3 mm."""
    maps = load_templates(0.0)
    chosen = maps["wm"] > 0.95 if kind == "white" else maps["gm"] + maps["wm"] > 0.8
    lattice = np.zeros_like(chosen)
    lattice[::3, ::3, ::3] = True
    return np.argwhere(chosen & lattice)


def darken_distractors(scan: np.ndarray, head: Head, rng: np.random.Generator) -> None:
    """Darken up to two mirrored pairs of small spots in white matter, in place: dark, yet no lesions."""
    places = _template_places("white")
    for _ in range(rng.integers(0, 3)):
        spot, radius, depth = places[rng.integers(len(places))], rng.uniform(2, 4), rng.uniform(0.2, 0.4)
        for x in (spot[0], 2 * MIDLINE_MM - spot[0]):
            centre = np.array([x, spot[1], spot[2]], np.float32)[:, None, None, None]
            distance = ((head.template_mm - centre) ** 2).sum(0)
            scan *= 1 - depth * np.exp(-distance / radius**2)


# --- scans ---------------------------------------------------------------------------------------------


def make_subject(settings: Settings, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Scan (1, D, H, W) float32 in ATLAS-like units (white matter near 80, air near 0) and mask (1, D, H, W) uint8."""
    # One stream for each part, so that a voxel more or less in one does not change the others.
    anatomy, lesions, noise = (np.random.default_rng([settings.seed, index, part]) for part in range(3))
    head = warp_head(settings, anatomy)
    white = anatomy.uniform(70, 90)
    levels = {"white": white, "grey": white * anatomy.uniform(0.65, 0.78), "fluid": white * anatomy.uniform(0.2, 0.35)}
    scan = paint_tissue(head, levels)
    darken_distractors(scan, head, anatomy)
    bias = np.exp(0.12 * smooth_field(head.template_mm, 220, anatomy))
    mask = np.zeros(scan.shape, bool)
    if index not in healthy_subjects(settings):
        opacity = draw_lesions(head, settings.spacing, lesions)
        texture = 1 + 0.15 * smooth_field(head.template_mm, 12, lesions)
        scan += settings.lesion_contrast * opacity * (levels["fluid"] * texture - scan)
        mask = opacity > 0.5
    scan = rician(scan * bias, 0.025 * white, noise)
    return scan.transpose(2, 0, 1)[None], mask.transpose(2, 0, 1)[None].astype(np.uint8)


def rician(scan: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of a complex signal with Gaussian noise (Gudbjartsson and Patz, 1995, 10.1002/mrm.1910340618)."""
    real, imaginary = rng.standard_normal((2, *scan.shape), np.float32) * np.float32(sigma)
    return np.hypot(scan + real, imaginary).astype(np.float32)


def healthy_subjects(settings: Settings) -> set[int]:
    """Indices of the subjects without lesion: just the wanted fraction, anywhere in the cohort."""
    n_healthy = round(settings.healthy_fraction * settings.n_subjects)
    shuffled = np.random.default_rng([settings.seed, 0, 3]).permutation(settings.n_subjects)
    return set(shuffled[:n_healthy].tolist())


# --- files ---------------------------------------------------------------------------------------------


def subject_files(out_dir: Path, index: int, ext: str) -> tuple[Path, Path]:
    subject = f"sub-r{index // 999 + 1:03d}s{index % 999 + 1:03d}_ses-1_{SPACE}"
    return (
        out_dir / "Scans" / f"{subject}_T1w{ext}",
        out_dir / "Masks" / f"{subject}_label-L_desc-T1lesion_mask{ext}",
    )


def write_subject(index: int, settings: Settings, out_dir: Path) -> dict:
    """Write a subject's scan and mask unless they are there, and return its row of ``cohort.csv``."""
    from data.overview import describe_scan
    from data.volumes import head_mask, read_volume, write_volume

    scan_path, mask_path = subject_files(out_dir, index, settings.ext)
    if not (scan_path.exists() and mask_path.exists()):
        scan, mask = make_subject(settings, index)
        affine = np.diag([settings.spacing] * 3 + [1.0])
        affine[:3, 3] = grid_mm(settings.spacing)[:, 0, 0, 0] - [98, 134, 72]
        write_volume(scan_path, scan, affine)
        write_volume(mask_path, mask, affine)
    mask, head = read_volume(mask_path).array[0] > 0, head_mask(read_volume(scan_path).array[0])
    subject, session = scan_path.name.split("_")[:2]
    return {
        "subject": subject.removeprefix("sub-"),
        "session": session.removeprefix("ses-"),
        "scan": scan_path.name,
        "mask": mask_path.name,
        **describe_scan(mask, head, (settings.spacing,) * 3),
    }


def write_cohort(settings: Settings, out_dir: Path, num_workers: int = 1) -> None:
    """Write all subjects, ``cohort.csv`` and ``phantom.json``; the files are the same for any `num_workers`."""
    import pandas as pd
    from tqdm import tqdm

    _claim(out_dir, settings)
    write = partial(write_subject, settings=settings, out_dir=out_dir)
    subjects = map_in_order(write, range(settings.n_subjects), num_workers)
    rows = list(tqdm(subjects, "Drawing synthetic scans", settings.n_subjects, unit="scan"))
    with atomic_path(out_dir / "cohort.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def _claim(out_dir: Path, settings: Settings) -> None:
    """Note the settings in the folder; refuse one that holds a cohort of other settings, or other scans."""
    note = out_dir / "phantom.json"
    if note.exists():
        if read_json(note)["settings"] != vars(settings):
            raise UserError(f"--out_dir {out_dir} holds a synthetic cohort of other settings; give another folder")
    elif any(out_dir.glob("Scans/*")) or any(out_dir.glob("Masks/*")):
        # Our names are ATLAS's: a patient's scan would be kept as if it were ours, and the two would mix.
        raise UserError(f"--out_dir {out_dir} holds scans that are not synthetic; give another folder")
    what = "Synthetic: drawn from the MNI152 templates by data.phantom; these are no patients."
    write_json(note, {"what": what, "settings": vars(settings)})


def parse_args() -> argparse.Namespace:
    parser = make_parser("Write a synthetic stroke cohort in the layout and names of ATLAS v2.0.")
    parser.add_argument("--out_dir", required=True, help="folder for Scans/, Masks/ and cohort.csv")
    parser.add_argument("--n_subjects", type=positive_int, default=30, help="subjects, one scan each")
    parser.add_argument("--spacing", type=positive_float, default=1.0, help="isotropic voxel size in mm")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of the cohort")
    parser.add_argument("--ext", type=extension, default=".npy", help="file extension: .npy, .nii or .nii.gz")
    parser.add_argument("--healthy_fraction", type=fraction, default=0.1, help="share of subjects without lesion")
    parser.add_argument(
        "--lesion_contrast", type=fraction, default=1.0, help="1 for a core as dark as CSF, 0 for none to be seen"
    )
    parser.add_argument(
        "--warp_mm", type=positive_float, default=3.0, help="standard deviation of the smooth warp in mm"
    )
    parser.add_argument("--num_workers", type=positive_int, default=1, help="processes")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    if args.spacing > COARSEST_SPACING_MM:
        raise UserError(f"--spacing {args.spacing:g} is too coarse for a head; give at most {COARSEST_SPACING_MM} mm")
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    write_cohort(settings, Path(args.out_dir), args.num_workers)
    print(f"{args.n_subjects} synthetic scans (no patients) are in {args.out_dir}")


if __name__ == "__main__":
    run(main, parse_args)
