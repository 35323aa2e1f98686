"""How good the brain masks are: those of synthetic heads, with and without skull, against the brains as drawn.

python benchmarks/heads.py --out_dir runs/heads
"""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
from common import argument_parser, dice, print_markdown

from data.files.nifti import affine_of
from data.files.space import Space
from data.phantom.cohort import make_subject
from data.phantom.contrast import MODALITIES
from data.scans.brain import find_brain
from data.scans.head import head_mask
from data.settings import PhantomSettings
from utils.progress import progress

SEED, HEADS = 5000, 20  # no seed of ``models.brain``; heads of each contrast
SPACINGS_MM = ((1, 1, 1), (2, 2, 2), (3, 3, 3), (5, 1, 1), (1.2, 1, 1), (4, 4, 4))  # (D, H, W)


def scores_of(index: int) -> dict:
    """Of a head of any variety, voxel size and contrast in turn; ``kept`` is of the same head without skull."""
    rng, modality = np.random.default_rng([SEED, index, 7]), list(MODALITIES)[index % len(MODALITIES)]
    spacing_mm = SPACINGS_MM[rng.integers(len(SPACINGS_MM))]
    settings = replace(PhantomSettings(), modality=modality, spacing=spacing_mm, seed=SEED, variety=rng.random())
    subject = make_subject(settings, index)
    scan, true, lesion = subject.scan[0], subject.brain, subject.mask[0] > 0
    stripped, own, head = np.where(true, scan, 0), Space(scan.shape, affine_of(spacing_mm)), head_mask(scan)
    started = time.process_time()
    brain = find_brain(scan, head, own)
    row = {"modality": modality, "seconds": time.process_time() - started}
    brain = head if brain is None else brain
    lost = np.count_nonzero(lesion & ~brain) / np.count_nonzero(lesion) if lesion.any() else np.nan
    kept = np.array_equal(find_brain(stripped, alone := head_mask(stripped), own), alone)
    return {**row, "dice": dice(brain, true), "lost": lost, "kept": kept}


def main() -> None:
    out_dir = argument_parser(__doc__).parse_args().out_dir
    out_dir.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(map(scores_of, progress(range(len(MODALITIES) * HEADS), "Heads")))
    table.to_csv(out_dir / "heads.csv", index=False)
    rows = []
    for modality, group in [*table.groupby("modality"), ("all", table)]:
        dices, lost = group.dice.agg(["mean", "min"]), 100 * group.lost.agg(["mean", "max"])
        cells = {"Dice, mean": f"{dices['mean']:.3f}", "least": f"{dices['min']:.3f}"}
        cells |= {"lesion lost, mean": f"{lost['mean']:.2f} %", "most": f"{lost['max']:.1f} %"}
        cells |= {"stripped, left as it is": f"{group.kept.sum()} of {len(group)}"}
        rows.append({f"{HEADS} heads each": modality, **cells, "seconds": f"{group.seconds.mean():.2f}"})
    print_markdown(rows)


if __name__ == "__main__":
    main()
