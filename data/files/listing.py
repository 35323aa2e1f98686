"""Which volumes files and folders hold, and which of them take part as scans and masks."""

import os
import re
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from data.files.bids import dataset_of, is_own
from data.files.names import EXTENSIONS, MASK, RESULTS, SCAN, extension_of, role_of, stem_of
from utils.errors import UserError

Paths = Sequence[Path | str]  # files and folders
# Folders of a BIDS data set whose scans are made of its own, or what these were made of.
NOT_RAW = ("derivatives", "sourcedata")
CHOOSE_BY_PATTERN = "--scan_pattern and --mask_pattern choose among the files"

# --- folders -------------------------------------------------------------------------------------------


def list_volumes(paths: Paths, argument: str) -> list[Path]:
    """Volumes among files and, recursively, folders, links to folders included; sorted, without hidden files.

    Args:
        argument: the command-line argument to name in messages.

    Raises:
        UserError: a path that does not exist, no volume at all, a link to a file that is not here.
    """
    volumes = list(find_volumes(paths, argument).values())
    require_some(volumes, paths, None, argument)
    require_present(volumes)
    return volumes


def find_volumes(paths: Paths, argument: str) -> dict[Path, Path]:
    """Volumes of any extension as they were reached, by their place: the real folder and the file's own name.

    A file that is reached twice is there once. Broken links are there too: a caller may not need them.
    """
    volumes, folders = {}, []
    for path in map(Path, paths):
        if path.is_dir():
            folders.append(path)
        elif not (path.is_file() or (path.is_symlink() and extension_of(path))):
            raise UserError(f"{argument} {path} does not exist; check the path")
        elif extension_of(path) is None:
            raise UserError(f"{argument} {path} is no {', '.join(EXTENSIONS)} volume; convert it")
        else:
            volumes[Path(os.path.realpath(path.parent), path.name)] = path
    for real, folder, names in _folders_below(folders, argument):
        for path in (folder / name for name in names):
            if not path.suffix:
                _refuse_lost_folder(path)
            elif extension_of(path) and (path.is_file() or path.is_symlink()):
                volumes.setdefault(real / path.name, path)
    once = [(path, place) for place, path in volumes.items() if not _is_linked_again(place, volumes)]
    return {place: path for path, place in sorted(once)}


def _folders_below(roots: list[Path], argument: str) -> Iterator[tuple[Path, Path, list[str]]]:
    """Real path, path and names of files of each folder, none of them hidden.

    Links are followed last: a real path goes before a link to it, and a loop ends where it comes back.
    """


    def refuse(error: OSError) -> None:
        raise UserError(f"{argument}: {error.filename} cannot be read ({error.strerror}); allow it or take it out")

    visited, waiting = set(), deque(roots)
    while waiting:
        for folder, inside, files in os.walk(waiting.popleft(), onerror=refuse):
            real = os.path.realpath(folder)
            if real in visited:
                inside.clear()
                continue
            visited.add(real)
            visible = sorted(name for name in inside if not name.startswith("."))
            links = [name for name in visible if Path(folder, name).is_symlink()]
            waiting += [Path(folder, name) for name in links]
            inside[:] = sorted(set(visible).difference(links))  # what os.walk goes down to
            yield Path(real), Path(folder), [name for name in files if not name.startswith(".")]


def _refuse_lost_folder(path: Path) -> None:
    """A link without a target and without an extension may stand for a folder of scans, on a drive that is away."""
    try:
        path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} is a link to what is not here; mount or fetch it, or remove the link") from None
    except OSError:  # a link to itself: there is nothing to miss
        return


def _is_linked_again(place: Path, volumes: Collection[Path]) -> bool:
    """Whether this is a link to another of the volumes, of the same name. Of another name, it means another scan."""
    if not place.is_symlink():
        return False
    target = Path(os.path.realpath(place))
    return target != place and target.name == place.name and target in volumes


def require_some(volumes: Collection[Path], paths: Paths, ext: str | None, argument: str) -> None:
    if not volumes:
        wanted = ext or ", ".join(EXTENSIONS)
        raise UserError(f"{argument} {' '.join(map(str, paths))} holds no {wanted} volume; check the path and --ext")


def require_present(paths: Iterable[Path]) -> None:
    """Refuse links whose target is missing, as git-annex and DataLad leave them for content that was not fetched."""
    for path in paths:
        if not path.exists():
            raise UserError(
                f"{path} is a link to a file that is not here; fetch it (datalad get, git annex get) or remove the link"
            )


# --- which files take part -----------------------------------------------------------------------------


class Patterns(NamedTuple):
    """Patterns of the paths of scans and masks, as of a shell (`fits`); None for what the names say (`role_of`)."""

    scan: str | None = None
    mask: str | None = None


BY_NAME = Patterns()


def choose_files(
    scans: Paths, masks: Paths | None, ext: str | None, names: tuple[str, str], patterns: Patterns = BY_NAME
) -> tuple[list[Path], list[Path] | None]:
    """The scans among the volumes of one argument and the masks among those of the other; prints what is left out.

    A file whose name says no role takes that of its argument, of `scans` where it is under both.
    """
    under_scans, scan_roles = _volumes_for(SCAN, scans, ext, names[0], patterns)
    if SCAN not in scan_roles.values():
        kinds = " and ".join(sorted(map(_plural, set(scan_roles.values()))))
        advice = "check --scan_pattern" if patterns.scan else "give the folder of the scans"
        raise UserError(f"{names[0]} {' '.join(map(str, scans))} holds {kinds} only; {advice}")
    under_masks, mask_roles = ({}, {}) if masks is None else _volumes_for(MASK, masks, ext, names[1], patterns)
    roles = mask_roles | scan_roles
    scan_files = {place: path for place, path in under_scans.items() if roles[place] == SCAN}
    mask_files = {place: path for place, path in under_masks.items() if roles[place] == MASK}
    # A scan that is left out is not under `scans`, nor a mask under `masks` where there is such an argument.
    outside = {SCAN: f"scan outside {names[0]}", MASK: MASK if masks is None else f"mask outside {names[1]}"}
    unused = roles.keys() - scan_files.keys() - mask_files.keys()
    print_left_out((place, outside.get(roles[place], roles[place])) for place in unused)
    require_present([*scan_files.values(), *mask_files.values()])
    return list(scan_files.values()), None if masks is None else list(mask_files.values())


def _volumes_for(
    role: str, paths: Paths, ext: str | None, argument: str, patterns: Patterns
) -> tuple[dict[Path, Path], dict[Path, str]]:
    """`find_volumes` and what each is, by its place; a file that was given must not be named as something else."""
    volumes, folders, roles = find_volumes(paths, argument), [], {}
    for path in map(Path, paths):
        if path.is_dir():
            folders.append(path)
        elif (own := role_of(path)) not in (role, None):
            raise UserError(f"{argument} {path} is a {own} by its name; give {role}s here, or rename it if it is one")
    require_some([place for place in volumes if ext in (None, extension_of(place))], paths, ext, argument)
    for place, path in volumes.items():
        root = next((folder for folder in folders if path.is_relative_to(folder)), path.parent)
        is_wanted = ext in (None, extension_of(path))
        roles[place] = role_below(root, path, role, patterns) if is_wanted else f"{extension_of(path)} file"
    return volumes, roles


def role_below(root: Path, path: Path, default: str, patterns: Patterns = BY_NAME, raw_only: bool = True) -> str:
    """What a file is by the patterns or, without them, by its name: `SCAN`, `MASK`, or words for what is neither.

    Args:
        root: the folder that was given, or that of the file.
        default: role of a file whose name says none.
        raw_only: whether scans in the folders `NOT_RAW` are left out, if no pattern asks for a folder.
    """
    if is_own(dataset_of(path)):
        return RESULTS["prediction"]
    own, path = role_of(path) or default, path.relative_to(root)
    # A mask is often named as its scan with a word behind it: it fits both patterns.
    if fits(path, patterns.mask) if patterns.mask else own == MASK:
        return MASK
    if not (fits(path, patterns.scan) if patterns.scan else own == SCAN):
        return "other volume" if own in (SCAN, MASK) else own
    aside = [folder for folder in NOT_RAW if folder in path.parts]
    return f"scan in {aside[0]}/" if aside and raw_only and "/" not in (patterns.scan or "") else SCAN


def fits(path: Path, pattern: str) -> bool:
    """Whether a file has a name of a pattern such as ``sub-*_T1w``, in any case, with or without its extension.

    A pattern with a slash is one of the whole path below the folder that was given.
    """
    names = [path.name, stem_of(path)]
    if "/" in pattern:
        names = [(path.parent / name).as_posix() for name in names]
    return any(fnmatchcase(name.lower(), pattern.lower()) for name in names)


def print_left_out(files: Iterable[tuple[Path, str]]) -> None:
    """One line on the files that take no part, counted by what they are."""
    kinds = defaultdict(list)
    for path, kind in files:
        kinds[kind].append(path.name)
    counts = [f"{counted(len(n), kind)} ({min(n)}{', ...' if len(n) > 1 else ''})" for kind, n in sorted(kinds.items())]
    if counts:
        print(f"Left out: {', '.join(counts)}")


def counted(count: int, what: str) -> str:
    return f"{count} {what if count == 1 else _plural(what)}"


def _plural(what: str) -> str:
    """Of "brain mask" and of "prediction of an earlier run", say."""
    return re.sub(r"(?= of | outside | in |$)", "s", what, count=1)
