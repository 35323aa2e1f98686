"""Where the lesions of a scan lie: their side, their place in MNI space, and the regions of an atlas."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from data.files.listing import counted
from data.files.names import SCAN
from data.files.space import Space, resample
from data.files.volumes import volume_image
from data.scans.atlas import OUTSIDE, Atlas, atlas_files, read_atlas
from data.scans.mni import map_space, register
from data.scans.prepared import PreparedScan
from data.scans.symmetry import midsagittal_plane, mm_right_of, side_of
from models.evaluation.settings import Outputs
from utils.files import PLACES_FILE, atomic_path, frequency_file, write_json
from utils.scores.masks import find_components, voxel_cm3

MNI_COLUMNS = ["mni_x_mm", "mni_y_mm", "mni_z_mm"]


def _voxels(labels: np.ndarray, corner: np.ndarray) -> list[np.ndarray]:
    """The voxels (N, 3) of each component of `labels` (D, H, W), whose first voxel is `corner`."""
    places = ndimage.value_indices(labels, ignore_value=0)
    return [np.stack(places[i], 1) + corner for i in sorted(places)]


@dataclass(frozen=True)
class Place:
    """Where a scan lies."""

    own: Space
    spacing_mm: tuple[float, float, float] | None  # None where it is unknown
    plane: np.ndarray  # as of `midsagittal_plane`
    to_mni: np.ndarray | None  # of `register`
    atlas: Atlas | None

    def side(self, voxels: np.ndarray) -> str | float:
        """Of (N, 3) voxels (D, H, W)."""
        return side_of(mm_right_of(self.plane, voxels, self.own))

    def labels(self, voxels: np.ndarray) -> np.ndarray | None:
        """Of the atlas; None without it or without a place in MNI space."""
        if self.atlas is None or self.to_mni is None:
            return None
        return self.atlas.at(nib.affines.apply_affine(self.to_mni, self.own.in_mm(voxels)))

    def region(self, voxels: np.ndarray) -> str | float:
        """The name of the region that holds most of them; NaN where it is unknown."""
        labels = self.labels(voxels)
        if labels is None or self.atlas is None:
            return np.nan
        return self.atlas.names.get(int(np.bincount(labels).argmax()), OUTSIDE)

    def with_places(self, rows: pd.DataFrame, prediction: np.ndarray, target: np.ndarray) -> pd.DataFrame:
        """`lesion_rows` of the masks (D, H, W) with ``side``, `MNI_COLUMNS` and ``region``."""
        components = find_components(prediction, target)
        true, predicted = (_voxels(labels, components.corner) for labels in (components.true, components.predicted))
        lesions = [*true, *itertools.compress(predicted, components.false)]
        matrix = np.full((4, 4), np.nan) if self.to_mni is None else self.to_mni
        centres = nib.affines.apply_affine(matrix, rows[["x_mm", "y_mm", "z_mm"]].to_numpy(float).reshape(-1, 3))
        new = {"side": [self.side(lesion) for lesion in lesions], **dict(zip(MNI_COLUMNS, centres.T, strict=True))}
        return rows.assign(**new, region=[self.region(lesion) for lesion in lesions])

    def region_rows(self, name: str, prediction: np.ndarray, target: np.ndarray | None) -> pd.DataFrame:
        """Rows of a scan in ``per_region_volumes.csv``: each region of the atlas, and what lies in none."""
        assert self.atlas is not None
        rows = pd.DataFrame({"scan": name, "region": [*self.atlas.names.values(), OUTSIDE]})
        for whose, mask in (("predicted", prediction), ("true", target)):
            rows[f"{whose}_cm3"] = np.nan
            if mask is not None and (labels := self.labels(np.argwhere(mask))) is not None:
                counts = np.bincount(labels, minlength=max(self.atlas.names) + 1)[[*self.atlas.names, 0]]
                rows[f"{whose}_cm3"] = counts * voxel_cm3(self.spacing_mm)
        return rows


@dataclass
class Places:
    """The places of the scans of an evaluation, and how many have a lesion where in MNI space."""

    atlas: Atlas | None
    known: dict[str, list | None] = field(default_factory=dict)  # (4, 4) from scanner mm to MNI mm by scan
    frequency: dict[str, np.ndarray] = field(default_factory=dict)
    regions: list[pd.DataFrame] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @staticmethod
    def asked_for(outputs: Outputs) -> "Places":
        files = atlas_files(outputs.atlas)
        return Places(read_atlas(*files) if files else None)

    def add(self, scan: PreparedScan, prediction: np.ndarray, target: np.ndarray | None) -> Place:
        """The place of a scan, with its masks (D, H, W) bool on its own grid; what they hold is counted."""
        to_mni = register(scan)
        plane = (
            midsagittal_plane(scan.brain, scan.space) if to_mni is None else to_mni[0] / np.linalg.norm(to_mni[0, :3])
        )
        place = Place(scan.own, scan.own_spacing_mm, plane, to_mni, self.atlas)
        self.known[scan.name] = None if to_mni is None else to_mni.tolist()
        if to_mni is None and scan.spacing_known:
            self.failed.append(scan.name)
        if self.atlas is not None:
            self.regions.append(place.region_rows(scan.name, prediction, target))
        for whose, mask in (("predicted", prediction), ("true", target)):
            if to_mni is not None and mask is not None:
                moved = resample(mask[None], Space(scan.own.shape, to_mni @ scan.own.affine), map_space())[0]
                self.frequency[whose] = moved + self.frequency.get(whose, np.float32(0))
        return place

    def write(self, folder: Path) -> None:
        """Write the places and the maps, and print a line on the scans that have none."""
        write_json(folder / PLACES_FILE, self.known)
        for whose in ("predicted", "true"):
            path = folder / frequency_file(whose)
            path.unlink(missing_ok=True)
            if whose in self.frequency:
                with atomic_path(path) as temporary:
                    counts = self.frequency[whose].astype(np.float32)
                    nib.save(volume_image(counts[None], map_space().affine), temporary)
        if self.failed:
            print(
                f"No place in MNI space was found of {counted(len(self.failed), SCAN)} (e.g. {self.failed[0]}), whose "
                "brain mask is unlike a whole brain: MNI columns stay empty; give brain masks with --brains_dir"
            )
