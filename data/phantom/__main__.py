"""A synthetic stroke cohort that needs no download: ``python -m data.phantom --out_dir data/demo``.

Scans are warped MNI152 templates with drawn lesions: no number measured on them says how a method does on patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.settings import PhantomSettings
from utils import cli
from utils.errors import UserError
from utils.settings import option
from utils.validators import pathname, positive_int

COARSEST_SPACING_MM = 20  # beyond it a lesion of a single voxel exceeds ATLAS's median by far, or has no tissue
FINEST_MM3 = 0.1  # of a voxel: a scan of 90 million voxels, near the largest file that scripts read


@dataclass(frozen=True)
class Settings:
    """Files."""

    out_dir: str = option(pathname, "folder for Scans/, Masks/, TrueBrains/, cohort.csv", required=True)
    num_workers: int = option(positive_int, "processes", 1)
    cohort: PhantomSettings = PhantomSettings()


parse_args = cli.parser_of(Settings(), "Write a synthetic stroke cohort in the layout and names of ATLAS.")


def main(settings: Settings) -> None:
    cohort = settings.cohort
    spacing = _three_sizes(cohort.spacing)
    if cohort.centres:
        if cohort.modality != "t1w" or cohort.oblique:
            raise UserError("--centres draws T1w scans; leave other contrasts and --oblique out")
        if cohort.n_subjects < cohort.centres:
            raise UserError(f"--centres {cohort.centres} needs a subject each; give a larger --n_subjects")
        cohort = replace(cohort, ext=".nii.gz", stripped=True)
    if cohort.ext == ".npy" and cohort.oblique:
        raise UserError("--oblique needs a file with an affine, which .npy has not; give --ext .nii.gz")

    from data.phantom.cohort import write_cohort  # loads libraries: not before the arguments are right

    write_cohort(replace(cohort, spacing=spacing), Path(settings.out_dir), settings.num_workers)
    print(f"{cohort.n_subjects} synthetic scans (no patients) are in {settings.out_dir}")


def _three_sizes(sizes: Sequence[float]) -> tuple[float, float, float]:
    """Sizes of voxels along D, H and W."""
    if len(sizes) not in (1, 3):
        raise UserError(f"--spacing has {len(sizes)} numbers; give one, or three along D H W")
    if max(sizes) > COARSEST_SPACING_MM:
        raise UserError(f"--spacing {max(sizes):g} is too coarse for a head; give at most {COARSEST_SPACING_MM} mm")
    d, h, w = sizes if len(sizes) == 3 else [sizes[0]] * 3
    if (mm3 := d * h * w) < FINEST_MM3:
        raise UserError(f"--spacing makes voxels of {mm3:.2g} mm3; give at least {FINEST_MM3} mm3")
    return d, h, w


if __name__ == "__main__":
    cli.run(main, parse_args)
