"""The centres of a synthetic cohort in the layout of ATLAS v3.0: each with subjects, voxels and axes of its own."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from data.files.space import Spacing
from data.settings import PhantomSettings

SUBJECTS, GRIDS = 6, 7  # random streams beside those of `data.phantom.cohort`
NEARLY_ONE = 0.9999  # in the masks of one of ATLAS's centres, in the place of 1


@dataclass(frozen=True)
class Centre:
    """A centre; every second one has the cohort's voxel size."""

    name: str  # as in ATLAS: R001, R002, ..., and SOOP, whose subjects' names are of another kind
    spacing_mm: Spacing
    axes: str  # of the stored voxels, such as LPS
    lesion: float  # value of its masks

    def stored(self, image: nib.Nifti1Image) -> nib.Nifti1Image:
        """An image in RAS along the axes of the centre."""
        ras, own = (nib.orientations.axcodes2ornt(axes) for axes in ("RAS", self.axes))
        return image.as_reoriented(nib.orientations.ornt_transform(ras, own))


def centre_of(settings: PhantomSettings, index: int) -> Centre | None:
    """The centre of a subject: each has one of the first subjects, and the first centres most of the others."""
    if (n := settings.centres) is None:
        return None
    number = index if index < n else int(n * np.random.default_rng([settings.seed, index, SUBJECTS]).random() ** 2)
    rng = np.random.default_rng([settings.seed, number, GRIDS])
    axes = "".join(rng.permutation([rng.choice(list(ends)) for ends in ("RL", "AP", "SI")]))
    d, h, w = np.multiply(settings.spacing, rng.uniform(0.75, 1.25, 3) if number % 2 else 1).round(2).tolist()
    return Centre("SOOP" if number == n - 1 else f"R{number + 1:03d}", (d, h, w), axes, 1 if number else NEARLY_ONE)


def atlas3_files(out_dir: Path, index: int, centre: Centre) -> tuple[Path, Path, Path]:
    """A subject's scan, mask and true brain, named as in ATLAS v3.0."""
    subject = f"sub-{centre.name.lower()}{'0' if centre.name == 'SOOP' else 's'}{index + 1:03d}"
    name, anat = f"{subject}_ses-1_space-orig", out_dir / centre.name / subject / "ses-1/anat"
    scan, mask = (anat / f"{name}_{what}.nii.gz" for what in ("desc-brain_T1w", "label-lesion_desc-T1lesion_mask"))
    return scan, mask, out_dir / "TrueBrains" / f"{name}_desc-brain_mask.nii.gz"
