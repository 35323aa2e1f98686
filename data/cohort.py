"""A cohort: scans paired with their masks by their BIDS entities, and the augmented scans made of them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.volumes import EXTENSIONS, extension_of, stem_of
from utils.errors import UserError
from utils.files import read_json


@dataclass(frozen=True)
class Case:
    """One scan and, where it has one, its mask.

    subject: the value of the BIDS entity ``sub-``; a file without entities is its own subject.
    """

    subject: str
    session: str | None
    scan: Path
    mask: Path | None

    @property
    def name(self) -> str:
        """The scan's file name: its key in regions JSON and in every table."""
        return self.scan.name

    @property
    def stem(self) -> str:
        return stem_of(self.scan)


# --- pairing -------------------------------------------------------------------------------------------


def bids_entity(path: Path | str, entity: str) -> str | None:
    """The value of an entity of a BIDS file name: ``bids_entity('sub-01_ses-2_T1w.npy', 'ses')`` is '2'."""
    found = re.search(rf"(?:^|_){entity}-([^_]+)", stem_of(path))
    return found.group(1) if found else None


def is_mask(path: Path) -> bool:
    return bool(re.search(r"mask|_msk", path.name))


def identity(path: Path) -> tuple[str, str | None, str | None]:
    """Subject, session and, for scans that ``python -m augmentation`` made of one of them, the number of the copy."""
    subject = bids_entity(path, "sub") or re.sub(r"(_T1w|_mask|_msk)+$", "", stem_of(path))
    return subject, bids_entity(path, "ses"), bids_entity(path, "augmented")


def list_volumes(paths: list[Path | str], ext: str | None, argument: str) -> list[Path]:
    """Volumes among files and, recursively, folders; sorted, without hidden files."""
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{argument} {path} does not exist")
        inside = [path] if path.is_file() else [p for p in path.rglob("*") if not p.name.startswith(".")]
        found += [p for p in inside if extension_of(p) and (ext is None or extension_of(p) == ext) and p.is_file()]
    if not found:
        wanted = ext or ", ".join(EXTENSIONS)
        raise UserError(f"{argument} {' '.join(map(str, paths))} holds no {wanted} volume; check the path and --ext")
    return sorted(set(found))


def pair_cases(
    scans: list[Path | str],
    masks: list[Path | str] | None,
    ext: str | None = None,
    names=("--scans", "--masks"),
) -> list[Case]:
    """Pair scans with masks by their BIDS entities ``sub-`` and ``ses-``, never by position.

    Args:
        scans, masks: files or folders; `masks` None for scans that have none.
        ext: only volumes of this extension; None for any.
        names: the command-line arguments to name in messages.

    Raises:
        UserError: an empty folder, two scans or masks of one session, a scan without its mask or, where `scans` are
            folders, a mask without its scan.
    """
    scan_files = [p for p in list_volumes(scans, ext, names[0]) if not is_mask(p)]
    if not scan_files:
        raise UserError(f"{names[0]} {' '.join(map(str, scans))} holds masks only; give the folder of the scans")
    mask_files = None if masks is None else [p for p in list_volumes(masks, ext, names[1]) if is_mask(p)]
    return pair_files(scan_files, mask_files, names, whole=all(Path(path).is_dir() for path in scans))


def pair_files(scans: list[Path], masks: list[Path] | None, names=("--scans", "--masks"), whole=True) -> list[Case]:
    """`pair_cases` of files that are known to be scans and masks; not `whole` if there may be masks of other scans."""
    by_scan = by_identity(scans, names[0])
    if masks is None:
        return [Case(*key[:2], scan, None) for key, scan in by_scan.items()]
    by_mask = by_identity(masks, names[1])
    for key, scan in by_scan.items():
        if key not in by_mask:
            raise UserError(f"{scan} has no mask in {names[1]}; add the mask or take the scan out")
    for key, mask in by_mask.items():
        if whole and key not in by_scan:
            raise UserError(f"{mask} has no scan in {names[0]}; add the scan or take the mask out")
    return [Case(*key[:2], scan, by_mask[key]) for key, scan in by_scan.items()]


def by_identity(paths: list[Path], argument: str, key_of: Callable[[Path], tuple] = identity) -> dict[tuple, Path]:
    """The paths by what they are of, which only one of them may be."""
    found: dict[tuple, Path] = {}
    for path in paths:
        key = key_of(path)
        if key in found:
            raise UserError(f"{argument}: {found[key]} and {path} are the same subject and session; keep one of them")
        found[key] = path
    return found


# --- augmented scans -----------------------------------------------------------------------------------


def augmented_cases(directory: Path | str) -> dict[Case, set[str]]:
    """Augmented scans and, for each, the subjects it is made of (recipient and donors of its lesions).

    ``provenance.json`` in `directory` tells, and a scan it does not name is not used:
    ``{scan file name: {"mask": mask file name, "recipient": subject, "donors": [subject, ...]}}``.
    """
    directory = Path(directory)
    provenance = read_json(directory / "provenance.json")
    cases = {}
    try:
        for name, origin in provenance.items():
            case = Case(origin["recipient"], None, directory / "Scans" / name, directory / "Masks" / origin["mask"])
            cases[case] = {origin["recipient"], *origin["donors"]}
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{directory / 'provenance.json'} lacks mask, recipient or donors; augment anew") from None
    for path in (path for case in cases for path in (case.scan, case.mask)):
        if not path.is_file():
            raise UserError(f"{path} is named in {directory / 'provenance.json'} but missing; augment anew")
    return cases


def refuse_augmented(cases: list[Case], argument: str) -> None:
    """Refuse a cohort to be split by subject that holds augmented scans: their lesions are other subjects'."""
    for case in cases:
        if bids_entity(case.scan, "augmented"):
            raise UserError(
                f"{argument}: {case.scan} is augmented and would carry lesions from fold to fold; keep the originals "
                "only and give the augmented folder with --use_augmented --augmented_dir"
            )
