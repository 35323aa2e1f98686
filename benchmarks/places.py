"""How exact the registration to MNI space is: ten landmarks and the side of seven in synthetic heads of all contrasts.

OMP_NUM_THREADS=1 python benchmarks/places.py

Half of the heads lie oblique; all have lesions. An affine cannot follow the smooth warp of these heads: the
best one, fitted to the true place of every voxel, is given beside the registration's. Brains are the true ones.
"""

import argparse
import time

import nibabel as nib
import numpy as np
import pandas as pd
from common import print_markdown

from data.files.space import Space
from data.phantom.cohort import _affine_of, draw_head, make_subject
from data.phantom.heads import ORIGIN_MM, Grid
from data.scans.head import normalise
from data.scans.mni import register
from data.scans.prepared import PreparedScan
from data.scans.symmetry import midsagittal_plane
from data.settings import PhantomSettings

SEED, HEADS = 11, 20
SPACINGS_MM = {"t1w": (1.0, 1.0, 1.0), "dwi": (2.0, 2.0, 2.0), "flair": (4.0, 1.5, 1.5)}
# In MNI mm: commissures, frontal pole; thalamus, insula, frontal, precentral, occipital, temporal lobe, cerebellum.
LANDMARKS_MM = [(0, 0, 0), (0, -28, 2), (0, 45, 30), (12, -18, 8), (-38, 4, 2), (25, 55, 15), (-38, -20, 55),
                (15, -90, 0), (-55, -15, -20), (25, -65, -40)]  # fmt: skip


def measure(index: int, settings: PhantomSettings) -> dict:
    """Errors in mm of a head's landmarks, and the seconds of its registration."""
    subject, grid = make_subject(settings, index), Grid(settings.spacing)
    true = draw_head(settings, index).template_mm - np.reshape(ORIGIN_MM, (3, 1, 1, 1))
    if true[0, 0].mean() > true[0, -1].mean():  # a mirrored head: its left is still left
        true[0] *= -1
    own = Space(subject.brain.shape, _affine_of(grid, settings.oblique))
    found = [np.square(true - np.reshape(place, (3, 1, 1, 1))).sum(0).argmin() for place in LANDMARKS_MM]
    marks = np.stack(np.unravel_index(found, true.shape[1:]), 1)
    marks_mm, true_mm = nib.affines.apply_affine(own.affine, marks), true[:, *marks.T].T
    brain = np.argwhere(subject.brain.transpose(1, 2, 0))[::50]
    brain_mm = np.c_[nib.affines.apply_affine(own.affine, brain), np.ones(len(brain))]
    best_mm = np.c_[marks_mm, np.ones(10)] @ np.linalg.lstsq(brain_mm, true[:, *brain.T].T)[0]
    scan = (normalise(subject.scan, subject.brain) * subject.brain).astype(np.float16)
    prepared = PreparedScan("", "", scan, subject.brain, None, own, own, True)
    register(prepared)  # loads the template
    started = time.process_time()
    to_mni = register(prepared)
    seconds = time.process_time() - started
    moved_mm = nib.affines.apply_affine(to_mni if to_mni is not None else np.full((4, 4), np.nan), marks_mm)
    right = np.c_[marks_mm, np.ones(10)] @ midsagittal_plane(subject.brain, own) > 0
    return {
        "to the best affine, mm": np.linalg.norm(moved_mm - best_mm, axis=1).mean(),
        "to the true place, mm": np.linalg.norm(moved_mm - true_mm, axis=1).mean(),
        "of the best affine, mm": np.linalg.norm(best_mm - true_mm, axis=1).mean(),
        "seconds": seconds,
        "wrong sides": int((right != (true_mm[:, 0] > 0))[3:].sum()),
        "largest lesions, cm3": subject.mask.sum() * np.prod(settings.spacing) / 1000,
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    for index in range(HEADS):
        modality = list(SPACINGS_MM)[index % 3]
        more = {"stripped": True, "oblique": bool(index % 2), "healthy_fraction": 0.0, "seed": SEED}
        settings = PhantomSettings(modality=modality, spacing=SPACINGS_MM[modality], n_subjects=HEADS, **more)
        rows.append(measure(index, settings))
    table = pd.DataFrame(rows)
    over = {"mean": table.mean(), "worst": table.max()}
    print_markdown([{f"{HEADS} heads": what, **values.map("{:.2f}".format)} for what, values in over.items()])


if __name__ == "__main__":
    main()
