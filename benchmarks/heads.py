"""How good the brain masks are: those of synthetic heads with skull, against the brains as drawn.

python benchmarks/heads.py --out_dir runs/heads
"""

import numpy as np
import pandas as pd
from common import argument_parser, dice, draw, print_markdown

from data.files.names import brain_name
from data.scans.brain import find_brain
from data.scans.checks import find_head, read_binary, read_mask, read_scan, space_of
from data.scans.cohort import Case

SEED, HEADS = 9, 20
SPACINGS_MM = (1, 2, 3)


def scores_of(case: Case) -> dict[str, float]:
    """Dice of the brain, and the share of the lesion voxels inside."""
    scan, lesion = read_scan(case), read_mask(case)
    brain = find_brain(scan[0], find_head(scan, case), "T1w", space_of(case))
    true = read_binary(case.scan.parent.parent / "TrueBrains" / brain_name(case.scan))
    return {"dice": dice(brain, true), "lesion_inside": np.count_nonzero(lesion & brain) / np.count_nonzero(lesion)}


def main() -> None:
    out_dir, rows = argument_parser(__doc__).parse_args().out_dir, []
    for spacing_mm in SPACINGS_MM:
        more = ["--healthy_fraction", 0, "--ext", ".nii.gz"]
        cases = draw(out_dir / f"brain-{spacing_mm}mm", SEED, HEADS, *more, spacing_mm=(spacing_mm,))
        table = pd.DataFrame([scores_of(case) for case in cases])
        cells = {f"{score}, {what}": f"{table[score].agg(what):.3f}" for score in table for what in ("mean", "min")}
        rows.append({f"{HEADS} heads": f"{spacing_mm} mm", **cells})
    print_markdown(rows)


if __name__ == "__main__":
    main()
