"""What the augmentation writes: scans, masks and where their lesions come from."""

from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from augmentation.cohort import Cohort
from augmentation.transfer import Settings, augment
from data.volumes import extension_of, read_header, stem_of, write_volume
from utils.files import read_json, write_json
from utils.parallel import map_in_order


def write_all(cohort: Cohort, settings: Settings, copies: int, out_dir: Path, num_workers: int) -> None:
    """Write every augmented scan that is not there yet, and ``provenance.json`` of all."""
    items = [(recipient, copy) for copy in range(copies) for recipient in range(len(cohort.cases))]
    work = partial(_write_one, cohort=cohort, settings=settings, out_dir=out_dir)
    done = list(tqdm(map_in_order(work, items, num_workers), "Augmenting", len(items), unit="scan"))
    provenance = {name: origin for name, origin in done if origin["lesions"]}
    write_json(out_dir / "provenance.json", provenance)
    moved = sum(len(origin["lesions"]) for origin in provenance.values())
    print(f"{moved} lesions were moved into {len(provenance)} augmented scans in {out_dir}")
    if len(done) > len(provenance):
        print(f"{len(done) - len(provenance)} scans got none: no pair or no room; --min_iou and --min_ssim decide")


def _write_one(item: tuple[int, int], cohort: Cohort, settings: Settings, out_dir: Path) -> tuple[str, dict]:
    """File name and origin of one augmented scan, made unless its record says that it was."""
    recipient, copy = item
    case = cohort.cases[recipient]
    ending = f"_augmented-{copy + 1}{extension_of(case.scan)}"
    name, mask_name = case.stem + ending, stem_of(case.mask) + ending
    record = out_dir / "Provenance" / f"{stem_of(name)}.json"
    if not record.exists():
        made, affine = augment(cohort, recipient, copy, settings), read_header(case.scan).affine
        if made.origins:
            write_volume(out_dir / "Scans" / name, made.image, affine)
            write_volume(out_dir / "Masks" / mask_name, made.lesions[None].astype(np.uint8), affine)
        donors = sorted({origin["donor"] for origin in made.origins})
        # Written last: its presence says that the volumes are whole.
        origin = {"mask": mask_name, "recipient": case.subject, "recipient_scan": case.name, "donors": donors}
        write_json(record, {**origin, "lesions": made.origins})
    return name, read_json(record)
