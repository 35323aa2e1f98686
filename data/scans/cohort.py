"""A cohort: scans paired with their masks by their BIDS entities, and the augmented scans made of them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from data.files.listing import BY_NAME, CHOOSE_BY_PATTERN, Paths, Patterns, choose_files, counted
from data.files.names import SCAN, brain_name, contrast_of, entities_of, standard_contrast, stem_of, subject_of
from data.settings import CohortFolders
from utils.errors import UserError
from utils.files import read_json

BRAINS = "Brains"  # the folder of brain masks beside that of the scans
Key = TypeVar("Key", bound=tuple)


@dataclass(frozen=True)
class Case:
    """One scan and, where it has one, its mask."""

    subject: str  # the BIDS entity ``sub-``, or what `subject_of` makes of another name; folds go by it
    session: str | None
    scan: Path
    mask: Path | None
    brain: Path | None = None  # mask of the brain made elsewhere; None to find it (`data.scans.brain`)

    @property
    def name(self) -> str:
        """The scan's file name: its key in regions JSON and in every table."""
        return self.scan.name

    @property
    def stem(self) -> str:
        return stem_of(self.scan)

    @property
    def lesion_mask(self) -> Path:
        """The mask, of a case that must have one."""
        if self.mask is None:
            raise UserError(f"{self.scan} has no lesion mask; give one")
        return self.mask


def pair_cases(
    scans: Paths,
    masks: Paths | None,
    ext: str | None = None,
    names: tuple[str, str] = ("--scans", "--masks"),
    patterns: Patterns | None = None,
) -> list[Case]:
    """Pair scans with masks by their BIDS entities, never by position, and print which files take part.

    Args:
        masks: None for scans that have none.
        ext: only volumes of this extension; None for any.
        names: the command-line arguments to name in messages.
        patterns: of ``--scan_pattern`` and ``--mask_pattern``; None for a command without them.

    Raises:
        UserError: an empty folder, files that cannot be told apart, a scan without its mask or, where `scans` are
            folders, a mask without its scan.
    """
    fix = "check the path and --ext" if ext else "check the path"
    scan_files, mask_files = choose_files(scans, masks, ext, names, patterns or BY_NAME, fix)
    try:
        cases = pair_files(scan_files, mask_files, names, whole=all(Path(path).is_dir() for path in scans))
    except UserError as error:
        if patterns is None:
            raise
        raise UserError(f"{error}; {CHOOSE_BY_PATTERN}") from None
    print_cases(cases, names[0])
    return cases


def cases_in(folders: CohortFolders) -> list[Case]:
    return pair_cases([folders.scans_dir], [folders.masks_dir], folders.ext, ("--scans_dir", "--masks_dir"))


def print_cases(cases: list[Case], argument: str) -> None:
    """One line on the scans that take part: how many, of which contrasts where they differ, of how many subjects."""
    contrasts = Counter(contrast_of(case.scan) or "of unknown contrast" for case in cases)
    kinds = ", ".join(f"{count} {contrast}" for contrast, count in sorted(contrasts.items()))
    scans = counted(len(cases), SCAN) + (f" ({kinds})" if len(contrasts) > 1 else "")
    masks = "without masks" if cases[0].mask is None else "with their masks" if len(cases) > 1 else "with its mask"
    print(f"{argument}: {scans} {masks}, of {counted(len({case.subject for case in cases}), 'subject')}")


class Identity(NamedTuple):
    """What distinguishes the scans of a cohort, and its masks."""

    subject: str
    session: str | None
    augmented: str | None  # the number of the copy
    acq: str | None
    run: str | None

    @property
    def of_session(self) -> tuple[str, str | None, str | None]:
        return self[:3]


def identity(path: Path) -> Identity:
    return Identity(subject_of(path), *map(entities_of(path).get, ("ses", "augmented", "acq", "run")))


def pair_files(scans: list[Path], masks: list[Path] | None, names=("--scans", "--masks"), whole=True) -> list[Case]:
    """`pair_cases` of files that are known to be scans and masks; not `whole` if there may be masks of other scans."""
    _refuse_two_contrasts(scans, names[0])
    by_scan = by_identity(scans, names[0], identity)
    by_mask = by_identity(masks or [], names[1], identity)
    mask_of = {scan: by_mask[mask] for scan, mask in match_by_identity(by_scan, by_mask).items()}
    for key, scan in by_scan.items():
        if masks is not None and key not in mask_of:
            raise UserError(f"{scan} has no mask in {names[1]}; add the mask or take the scan out")
    used = set(mask_of.values())
    if whole and (unpaired := [mask for mask in by_mask.values() if mask not in used]):
        raise UserError(f"{unpaired[0]} has no scan in {names[0]}; add the scan or take the mask out")
    return [Case(key.subject or stem_of(scan), key.session, scan, mask_of.get(key)) for key, scan in by_scan.items()]


def match_by_identity(by_scan: dict[Identity, Path], by_mask: dict[Identity, Path]) -> dict[Identity, Identity]:
    """The mask of each scan that has one: of its own identity, or of its session where it can be of no other scan."""
    sessions = defaultdict(list)
    for key in by_scan:
        sessions[key.of_session].append(key)
    mask_of = {key: key for key in by_scan if key in by_mask}
    for key in (key for key in by_mask if key not in by_scan):
        others = sessions[key.of_session]  # of which it may be those that agree in what both names tell
        fitting = [o for o in others if all(a == b for a, b in zip(key[3:], o[3:], strict=True) if a and b)]
        if len(fitting) > 1:
            raise UserError(_lacks(by_mask[key], *((scan, by_scan[scan]) for scan in fitting[:2])))
        for scan in fitting:
            if scan in mask_of:
                raise UserError(_lacks(by_scan[scan], *((mask, by_mask[mask]) for mask in (mask_of[scan], key))))
            mask_of[scan] = key
    return mask_of


def by_identity(paths: Sequence[Path], argument: str, key_of: Callable[[Path], Key]) -> dict[Key, Path]:
    """The paths by the key of each, such as its `identity`, which no two of them may share."""
    path_of: dict[Key, Path] = {}
    for path in paths:
        other = path_of.setdefault(key_of(path), path)
        if other is not path:
            raise UserError(f"{argument}: {other} and {path} {_why_not_both(other, path)}")
    return path_of


def _refuse_two_contrasts(scans: list[Path], argument: str) -> None:
    """A network is for one contrast, and scans of one session would be told apart by nothing else."""
    first: dict[tuple, tuple[Path, str]] = {}
    for scan in scans:
        if contrast := contrast_of(scan):
            other, its_contrast = first.setdefault(identity(scan).of_session, (scan, contrast))
            if standard_contrast(contrast) != standard_contrast(its_contrast):
                raise UserError(
                    f"{argument}: {other} and {scan} are two contrasts ({its_contrast} and {contrast}) of one "
                    "session; give a folder with the scans of one contrast, or with links to them"
                )


def _lacks(path: Path, *others: tuple[Identity, Path]) -> str:
    (key, first), (other, second) = others
    entities = " and ".join(f"{e}-" for e, a, b in zip(Identity._fields, key, other, strict=True) if a != b)
    return f"{path} lacks {entities}, which tells {first} from {second}; add it to its name, or take one out"


def _why_not_both(first: Path, second: Path) -> str:
    """What is wrong with two paths of one key, and how to fix it."""
    if first.name == second.name:
        return "have the same name, under which results are kept; rename them after their subjects"
    if stem_of(first) == stem_of(second):
        return "differ only in their extension; take one out"
    one, other = entities_of(first), entities_of(second)
    differing = " and ".join(f"{e}-" for e in sorted(one.keys() | other.keys()) if one.get(e) != other.get(e))
    which = f"differ only in {differing}" if differing else "have no run- that tells them apart"
    return f"are of the same subject and session and {which}; take one out, or give them different run-"


def refuse_twins(train: list[Case], val: list[Case]) -> None:
    """Refuse different scans of one name on two sides: results and regions are kept under it."""
    by_name = {case.name: case for case in train}
    for case in val:
        twin = by_name.get(case.name, case)
        if twin.scan.resolve() != case.scan.resolve():
            raise UserError(f"{twin.scan} trains and {case.scan} validates under one name; rename one of them")


def print_shared_subjects(train: Iterable[str], val: Iterable[str]) -> None:
    """One line if subjects train and validate: the best epoch and the threshold are then chosen on what was learned."""
    if shared := sorted(set(train) & set(val)):
        print(
            f"{counted(len(shared), 'subject')} ({shared[0]}{', ...' if len(shared) > 1 else ''}) both train and "
            "validate: scores of validation are too good, and so is what is chosen by them"
        )


def augmented_cases(directory: Path | str) -> dict[Case, set[str]]:
    """Augmented scans and, for each, the subjects it is made of (recipient and donors of its lesions).

    Only those of ``provenance.json`` in `directory` are used:
    ``{scan file name: {"mask": mask file name, "recipient": subject, "donors": [subject, ...]}}``.
    """
    directory = Path(directory)
    listed = directory / "provenance.json"
    cases, files = {}, []
    try:
        for name, origin in read_json(listed).items():
            scan, mask = directory / "Scans" / name, directory / "Masks" / origin["mask"]
            brain = directory / BRAINS / brain_name(name)
            case = Case(origin["recipient"], None, scan, mask, brain if brain.is_file() else None)
            cases[case] = {origin["recipient"], *origin["donors"]}
            files += [scan, mask]
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{listed} lacks mask, recipient or donors; augment anew") from None
    if missing := [path for path in files if not path.is_file()]:
        raise UserError(f"{missing[0]} is named in {listed} but missing; augment anew")
    return cases


def refuse_augmented(cases: list[Case], argument: str) -> None:
    """Refuse a cohort to be split by subject that holds augmented scans: their lesions are other subjects'."""
    for case in cases:
        if "augmented" in entities_of(case.scan):
            raise UserError(
                f"{argument}: {case.scan} is augmented and would carry lesions from fold to fold; keep the originals "
                "only and give the augmented folder with --use_augmented --augmented_dir"
            )
