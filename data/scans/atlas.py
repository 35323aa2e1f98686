"""An atlas in MNI space: which region each place belongs to."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files.space import Space, resample
from data.files.volumes import read_volume
from data.scans.mni import template_t1
from utils.errors import UserError
from utils.files import expanded

OUTSIDE = "outside the atlas"
LARGEST_LABEL = 2**16
LEAST_INSIDE = 0.5  # of the regions: an atlas of another space may still touch the template's brain


@dataclass(frozen=True)
class Atlas:
    """Labels (D, H, W) in MNI space, and the names of those that occur, in their order; 0 is outside."""

    labels: np.ndarray
    space: Space
    names: dict[int, str]

    def at(self, mni_mm: np.ndarray) -> np.ndarray:
        """The label of each of (N, 3) places, (N,) int; 0 beyond the atlas."""
        to_voxel = np.linalg.inv(self.space.affine)
        places = np.rint(mni_mm @ to_voxel[:3, :3].T + to_voxel[:3, 3]).astype(int)[:, [2, 0, 1]]
        inside = ((places >= 0) & (places < self.labels.shape)).all(1)
        found = np.zeros(len(places), int)
        found[inside] = self.labels[tuple(places[inside].T)]
        return found


def atlas_files(atlas: Path | str | None) -> list[Path]:
    """The atlas of ``--atlas``, and the names of its labels: the ``.txt`` beside it, if any."""
    if atlas is None:
        return []
    path = expanded(atlas)
    names = path.with_name(re.sub(r"\.nii(\.gz)?$", "", path.name) + ".txt")
    return [path, names] if names.exists() else [path]


def read_atlas(path: Path, names: Path | None = None) -> Atlas:
    """Read an atlas and its names; without names a region is called by its label.

    Raises:
        UserError: no 3D NIfTI volume of whole numbers that lie in the brain of MNI space, or names that do not fit.
    """
    volume = read_volume(path)
    if volume.affine is None:
        raise UserError(f"--atlas {path} has no affine, which places it in MNI space; give a NIfTI file")
    if len(volume.array) != 1:
        raise UserError(f"--atlas {path} has {len(volume.array)} volumes; give one volume of labels")
    values = volume.array[0]
    whole = np.isfinite(values).all() and (values == np.rint(values)).all()
    if not whole or values.min() < 0 or not 0 < values.max() <= LARGEST_LABEL:
        raise UserError(f"--atlas {path} holds other values than labels; give whole numbers from 0 to {LARGEST_LABEL}")
    space, labels = Space(values.shape, volume.affine), values.astype(np.int32)
    t1, own = template_t1()
    brain, regions = resample((t1 > 0)[None], own, space)[0], labels > 0
    if np.count_nonzero(regions & brain) < LEAST_INSIDE * np.count_nonzero(regions):
        raise UserError(f"--atlas {path} does not lie in the brain of MNI152 space; give an atlas of that space")
    present = np.unique(labels[regions]).tolist()
    read = {label: str(label) for label in present} if names is None else _read_names(names)
    if missing := [label for label in present if label not in read]:
        raise UserError(f"{names} has no name for the label {missing[0]} of {path}; add a line, e.g. {missing[0]} NAME")
    return Atlas(labels, space, {label: read[label] for label in present})


def _read_names(path: Path) -> dict[int, str]:
    """Names by label: a line each, the label first, then columns behind ``|``, tabs, ``;`` or ``,``, or one name.

    Of several columns it is the first in which all names differ.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a text file") from None
    rows = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in lines)):
        if not (match := re.match(r"(\d+)\s*[\s|;,:](.*\S)", line)) or int(match[1]) in rows:
            raise UserError(f"{path}: {line!r} is no line of a label of its own and a name; correct it")
        name = re.sub(r"(\s+\d+){4}$", "", match[2])  # colours of FreeSurfer's tables
        rows[int(match[1])] = [column.strip() for column in re.split(r"[|\t;,]", name)]
    for column in zip(*rows.values(), strict=False):
        if len(set(column)) == len(rows) and all(column):
            return dict(zip(rows, column, strict=True))
    raise UserError(f"{path} has no column in which all names differ; correct it")
