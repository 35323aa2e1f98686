"""What the augmentation writes: scans, masks and where their lesions come from."""

from functools import partial
from pathlib import Path

import numpy as np

from augmentation.cohort import IndexedCohort
from augmentation.settings import TransferSettings
from augmentation.transfer import augment
from data.files.names import brain_name, extension_of, stem_of
from data.files.volumes import read_header, write_volume
from data.scans.cohort import BRAINS
from data.scans.fingerprints import PREPARATION_VERSION, combined
from utils.files import read_json, write_json
from utils.parallel import map_in_order
from utils.progress import progress

# Raised by hand when the same scans and settings give others: those of an earlier version are made anew.
TRANSFER_VERSION = 1


def write_all(
    cohort: IndexedCohort,
    digests: dict[str, str],
    settings: TransferSettings,
    copies: int,
    out_dir: Path,
    num_workers: int,
) -> None:
    """Write every augmented scan that is not there yet, and ``provenance.json`` of all.

    Args:
        digests: of the cohort's cases by the scan's name. Which scans lend depends on all of them, so that a change of
            one makes all augmented scans anew.
    """
    items = [(recipient, copy) for copy in range(copies) for recipient in range(len(cohort.cases))]
    work = partial(_write_one, cohort=cohort, digests=digests, settings=settings, out_dir=out_dir)
    done = list(progress(map_in_order(work, items, num_workers), "Augmenting", len(items)))
    provenance = {name: origin for name, origin in done if origin["lesions"]}
    _remove_others(out_dir, done)
    write_json(out_dir / "provenance.json", provenance)
    moved = sum(len(origin["lesions"]) for origin in provenance.values())
    print(f"{moved} lesions were moved into {len(provenance)} augmented scans in {out_dir}")
    if len(done) > len(provenance):
        print(f"{len(done) - len(provenance)} scans got none: no pair or no room; --min_iou and --min_ssim decide")


def _remove_others(out_dir: Path, done: list[tuple[str, dict]]) -> None:
    """Remove what earlier runs made and this one did not: of scans that have left the cohort or lost their lesion."""
    kept = {path for name, origin in done if origin["lesions"] for path in _volumes(out_dir, name, origin["mask"])}
    records = {_record(out_dir, name) for name, _ in done}
    for record in set((out_dir / "Provenance").glob("*.json")) - records:
        record.unlink()
    made = [volume for folder in ("Scans", "Masks", BRAINS) for volume in (out_dir / folder).glob("*_augmented-*")]
    for volume in set(made) - kept:
        volume.unlink()


def _volumes(out_dir: Path, name: str, mask_name: str) -> tuple[Path, Path, Path]:
    """Where scan, lesion mask and brain mask of an augmented scan go; the brain is the recipient's."""
    return out_dir / "Scans" / name, out_dir / "Masks" / mask_name, out_dir / BRAINS / brain_name(name)


def _record(out_dir: Path, name: str) -> Path:
    return out_dir / "Provenance" / f"{stem_of(name)}.json"


def _write_one(
    item: tuple[int, int], cohort: IndexedCohort, digests: dict[str, str], settings: TransferSettings, out_dir: Path
) -> tuple[str, dict]:
    """File name and origin of one augmented scan, made unless its record says that it was, of this very cohort."""
    recipient, copy = item
    case = cohort.cases[recipient]
    ending = f"_augmented-{copy + 1}{extension_of(case.scan)}"
    name, mask_name = case.stem + ending, stem_of(str(case.mask)) + ending
    record = _record(out_dir, name)
    made_of = combined({**digests, "versions": f"{PREPARATION_VERSION}, {TRANSFER_VERSION}"})
    if not (record.exists() and read_json(record).get("made_of") == made_of):
        made, affine = augment(cohort, recipient, copy, settings), read_header(case.scan).affine
        if made.origins:
            scan_path, mask_path, brain_path = _volumes(out_dir, name, mask_name)
            write_volume(scan_path, made.image, affine)
            write_volume(mask_path, made.lesions[None].astype(np.uint8), affine)
            write_volume(brain_path, cohort.load(recipient).brain[None].astype(np.uint8), affine)
        donors = sorted({origin["donor"] for origin in made.origins})
        # Written last: its presence says that the volumes are whole.
        origin = {"mask": mask_name, "recipient": case.subject, "recipient_scan": case.name, "donors": donors}
        sources = {scan: digests[scan] for scan in {case.name, *(origin["scan"] for origin in made.origins)}}
        write_json(record, {**origin, "sources": sources, "made_of": made_of, "lesions": made.origins})
    return name, read_json(record)
