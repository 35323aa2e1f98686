"""What the augmentation writes: scans, masks, where their lesions come from, and a page of them to look at."""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from augmentation.cohort import IndexedCohort, Scan
from augmentation.transfer import TransferSettings, augment
from data.files.names import brain_name, extension_of, stem_of
from data.files.volumes import read_header, read_volume, write_volume
from data.scans.cohort import BRAINS
from data.scans.fingerprints import PREPARATION_VERSION, combined
from utils.files import read_json, write_json
from utils.plots import DPI, outline, save_figure, show_slice
from utils.progress import map_in_order

# Raised by hand when the same scans and settings give others: those of an earlier version are made anew.
TRANSFER_VERSION = 2
ROWS = 8  # of the contact sheet


def write_all(
    cohort: IndexedCohort,
    digests: dict[str, str],
    settings: TransferSettings,
    copies: int,
    out_dir: Path,
    num_workers: int,
) -> None:
    """Write every augmented scan that is not there yet, and ``provenance.json`` of all.

    Which scans lend depends on all: a change of one, by the `digests` of scans by name, makes all augmented scans anew.
    """
    items = [(recipient, copy) for copy in range(copies) for recipient in range(len(cohort.cases))]
    work = partial(_write_one, cohort=cohort, digests=digests, settings=settings, out_dir=out_dir)
    done = list(map_in_order(work, items, num_workers, "Augmenting"))
    provenance = {name: origin for name, origin in done if origin["lesions"]}
    # What earlier runs made and this one did not: of scans that have left the cohort or lost their lesion.
    for record in set((out_dir / "Provenance").glob("*.json")) - {_record(out_dir, name) for name, _ in done}:
        record.unlink()
    kept = {path for name, origin in provenance.items() for path in _volumes(out_dir, name, origin["mask"])}
    made = [volume for folder in ("Scans", "Masks", BRAINS) for volume in (out_dir / folder).glob("*_augmented-*")]
    for volume in set(made) - kept:
        volume.unlink()
    write_json(out_dir / "provenance.json", provenance)
    moved = sum(len(origin["lesions"]) for origin in provenance.values())
    print(f"{moved} lesions were moved into {len(provenance)} augmented scans in {out_dir}")
    if len(done) > len(provenance):
        print(f"{len(done) - len(provenance)} scans got none: no pair or no room; --min_iou and --min_ssim decide")


def draw_contact_sheet(cohort: IndexedCohort, out_dir: Path) -> None:
    """Write ``contact_sheet.png``: of up to `ROWS` augmented scans recipient, donor, result and what changed."""
    provenance = read_json(out_dir / "provenance.json")
    if not provenance:
        return
    shown = list(provenance)[:: -(-len(provenance) // ROWS)]
    volumes = {case.name: number for number, case in enumerate(cohort.cases)}
    figure = Figure(figsize=(11, 2.8 * len(shown)), dpi=DPI, layout="constrained")
    for axes, name in zip(figure.subplots(len(shown), 4, squeeze=False), shown, strict=True):
        origin = provenance[name]
        lesion = max(origin["lesions"], key=lambda lesion: lesion["voxels"])
        recipient, donor = (cohort.load(volumes[scan]) for scan in (origin["recipient_scan"], lesion["scan"]))
        z, donor_z = lesion["slice"], lesion["donor_slice"]
        before, after = recipient.image[0, z], read_volume(out_dir / "Scans" / name).array[0, z]
        mask = read_volume(out_dir / "Masks" / origin["mask"]).array[0, z]
        show_slice(axes[0], _scaled(before, recipient), f"recipient, slice {z}")
        show_slice(axes[1], _scaled(donor.image[0, donor_z], donor), f"donor, slice {donor_z}")
        show_slice(axes[2], _scaled(after, recipient), "result")
        show_slice(axes[3], 0.5 + (after - before) / recipient.contrast[0], "difference")
        axes[0].set_ylabel(name, fontsize=6)
        outline(axes[1], donor.lesions[donor_z])
        outline(axes[2], mask > recipient.lesions[z])
    save_figure(figure, out_dir / "contact_sheet.png")


def _scaled(image: np.ndarray, scan: Scan) -> np.ndarray:
    return (image - scan.low[0]) / max(scan.contrast[0], 1e-12)


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
            masks = [mask[None].astype(np.uint8) for mask in (made.lesions, cohort.load(recipient).brain)]
            for path, array in zip(_volumes(out_dir, name, mask_name), [made.image, *masks], strict=True):
                write_volume(path, array, affine)
        donors = sorted({origin["donor"] for origin in made.origins})
        # Written last: its presence says that the volumes are whole.
        origin = {"mask": mask_name, "recipient": case.subject, "recipient_scan": case.name, "donors": donors}
        sources = {scan: digests[scan] for scan in sorted({case.name, *(origin["scan"] for origin in made.origins)})}
        write_json(record, {**origin, "sources": sources, "made_of": made_of, "lesions": made.origins})
    return name, read_json(record)
