"""Real lesion masks in MNI152, whose shapes and places the lesions of a synthetic cohort may take."""

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects, label, map_coordinates

from data.files.nifti import open_nifti
from data.files.volumes import refusing
from data.phantom.heads import MIDLINE_MM, ORIGIN_MM, Head, load_templates
from data.phantom.lesions import draw_fade_mm, opacity_at
from data.scans.checks import read_lesions
from data.scans.fingerprints import content_digest
from utils.errors import UserError
from utils.progress import map_in_order
from utils.scores.masks import TWENTY_SIX_CONNECTED

ARGUMENT = "--lesion_masks"
SCANS = 3  # whose lesions are mixed in one head: the largest is the first one's
MIXED_SHARE = 0.5  # of the other lesions, that come from another scan than the largest
GROWTH_MM, GROWTH_SHARE = 1.0, 0.3  # the most that a lesion is grown or eroded by, and as a share of its radius
# Of a mask, in the template's brain. Some lie in sulci, which that leaves out: the least of 1,208 real ones has 0.48.
LEAST_SHARE_INSIDE = 0.4
MARGIN = 6  # voxels about a lesion in which its edge fades


def list_masks(folder: Path | str) -> list[Path]:
    """The masks of a folder, sorted; refuses a folder without any, and files without an affine."""
    paths = sorted(path for path in Path(folder).glob("*") if path.name.endswith((".nii", ".nii.gz", ".npy")))
    if not paths:
        raise UserError(f"{ARGUMENT} {folder} holds no .nii or .nii.gz; give a folder of lesion masks in MNI152")
    if bad := next((path for path in paths if path.suffix == ".npy"), None):
        raise UserError(f"{ARGUMENT}: {bad} has no affine and thus no place in MNI152; give .nii or .nii.gz")
    return paths


def describe_masks(folder: Path | str, known: dict | None, num_workers: int) -> dict:
    """Number and digest of the masks of a folder; each is checked first, unless they are those `known`."""
    paths = list_masks(folder)
    described = {"masks": len(paths), "digest": content_digest(paths)}
    if described != known:
        list(map_in_order(_check_mask, paths, num_workers, "Checking lesion masks"))
    return described


def _check_mask(path: Path) -> None:
    """Refuse a mask that is not binary, is empty, has no affine, or does not lie in the template's brain."""
    to_template, (mask, _) = _to_template(path), read_lesions(path)
    if not mask.any():
        raise UserError(f"{ARGUMENT}: {path} holds no lesion; remove it from the folder")
    places = np.rint(np.argwhere(mask.transpose(1, 2, 0)) @ to_template[:3, :3].T + to_template[:3, 3]).astype(int)
    brain = load_templates()["brain"] > 0.5
    inside = places[((places >= 0) & (places < brain.shape)).all(1)]
    if np.count_nonzero(brain[tuple(inside.T)]) < LEAST_SHARE_INSIDE * len(places):
        raise UserError(f"{ARGUMENT}: {path} lies outside of the brain of MNI152; bring it there")


def _to_template(path: Path) -> np.ndarray:
    """(4, 4) from voxels (H, W, D) in RAS to template mm."""
    with refusing(path), open_nifti(path) as nifti:
        return nib.affines.from_matvec(np.eye(3), ORIGIN_MM) @ nifti.ras_affine


class Component(NamedTuple):
    """A lesion of a mask."""

    depth_mm: np.ndarray  # (H, W, D) float32, distance from its surface in a box, positive inside
    to_voxel: np.ndarray  # (3, 4) from template mm to voxels of the box
    deepest: np.ndarray  # (3,) template mm


def read_components(path: Path) -> list[Component]:
    """The lesions of a mask, the largest first."""
    to_template = _to_template(path)
    labels, _ = label(read_lesions(path)[0].transpose(1, 2, 0), TWENTY_SIX_CONNECTED)
    sizes, boxes = np.bincount(labels.ravel())[1:], find_objects(labels)
    spacing = nib.affines.voxel_sizes(to_template)
    components = []
    for i in np.argsort(-sizes, kind="stable"):
        own = np.pad(labels[boxes[i]] == i + 1, MARGIN)
        inside, outside = (distance_transform_edt(part, spacing) for part in (own, ~own))
        depth = np.where(own, inside - spacing.min() / 2, spacing.min() / 2 - outside).astype(np.float32)
        start = np.array([side.start for side in boxes[i]]) - MARGIN
        to_voxel = np.linalg.inv(to_template)[:3] - np.c_[np.zeros((3, 3)), start]
        deepest = to_template[:3] @ np.append(np.unravel_index(depth.argmax(), depth.shape) + start, 1)
        components.append(Component(depth, to_voxel, deepest))
    return components


def draw_real_lesions(head: Head, paths: list[Path], variety: float, rng: np.random.Generator) -> np.ndarray:
    """Opacity of lesions with the shapes and places of some masks, as that of `lesions.draw_lesions`.

    The largest lesion of one mask, and each further one of that mask or, in its place, of two others.
    """
    chosen = rng.choice(len(paths), min(SCANS, len(paths)), replace=False)
    first, *others = (read_components(paths[i]) for i in chosen)
    is_mirrored, side = rng.random() < 0.5, first[0].deepest[0] > MIDLINE_MM
    points = head.template_mm[:, head.tissue]
    opacity = np.zeros(points.shape[1], np.float32)
    for i, component in enumerate(first):
        other, flip = others[rng.integers(len(others))] if others else [], is_mirrored
        if 0 < i < len(other) and rng.random() < MIXED_SHARE:  # on the same side of its own largest as before
            component, flip = other[i], is_mirrored ^ ((other[0].deepest[0] > MIDLINE_MM) != side)
        depth, radius = _depth_at(points, component, flip), float(component.depth_mm.max())
        depth += rng.uniform(-1, 1) * min(GROWTH_MM, GROWTH_SHARE * radius)
        if i == 0 and depth.max() <= 0:  # it lies between coarse voxels; a scan with lesions has one at any spacing
            centre = np.where([flip, False, False], 2 * MIDLINE_MM, 0) + component.deepest * ([1, -1][flip], 1, 1)
            depth[((points - centre[:, None]) ** 2).sum(0).argmin()] = radius
        np.maximum(opacity, opacity_at(depth, draw_fade_mm(variety, radius, rng)), out=opacity)
    volume = np.zeros(head.tissue.shape, np.float32)
    volume[head.tissue] = opacity
    return volume


def _depth_at(points: np.ndarray, component: Component, is_mirrored: bool) -> np.ndarray:
    """(N,) float32 depth in a component of (3, N) points in template mm; far outside of its box -100."""
    matrix, offset = component.to_voxel[:, :3].copy(), component.to_voxel[:, 3].copy()
    if is_mirrored:
        offset += matrix[:, 0] * 2 * MIDLINE_MM
        matrix[:, 0] *= -1
    voxels = matrix.astype(np.float32) @ points + offset.astype(np.float32)[:, None]
    near = ((voxels > -0.5) & (voxels < np.array(component.depth_mm.shape)[:, None] - 0.5)).all(0)
    depth = np.full(len(near), -100, np.float32)
    depth[near] = map_coordinates(component.depth_mm, voxels[:, near], order=1, mode="nearest")
    return depth
