"""Which volumes files and folders hold, and which of them take part as scans and masks."""

import os
import re
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path

from data.names import EXTENSIONS, MASK, SCAN, extension_of, role_of
from utils.errors import UserError

# --- folders -------------------------------------------------------------------------------------------


def list_volumes(paths: list[Path | str], ext: str | None, argument: str) -> list[Path]:
    """Volumes among files and, recursively, folders, links to folders included; sorted, without hidden files.

    Args:
        ext: only volumes of this extension; None for any.
        argument: the command-line argument to name in messages.

    Raises:
        UserError: a path that does not exist, no volume at all, a link to a file that is not here.
    """
    found = [path for path in find_volumes(paths, argument).values() if ext in (None, extension_of(path))]
    require_some(found, paths, ext, argument)
    require_present(found)
    return found


def find_volumes(paths: list[Path | str], argument: str) -> dict[Path, Path]:
    """Volumes of any extension as they were reached, by their place: the real folder and the file's own name.

    A file that is reached twice is there once. Links to files that are not here are there too: whether they are
    missed depends on what they would be.
    """
    found, folders = {}, []
    for path in map(Path, paths):
        if path.is_dir():
            folders.append(path)
        elif not (path.is_file() or (path.is_symlink() and extension_of(path))):
            raise UserError(f"{argument} {path} does not exist; check the path")
        elif extension_of(path) is None:
            raise UserError(f"{argument} {path} is no {', '.join(EXTENSIONS)} volume; convert it")
        else:
            found[Path(os.path.realpath(path.parent), path.name)] = path
    for real, folder, names in _folders_below(folders, argument):
        for path in (folder / name for name in names):
            if not path.suffix:
                _refuse_lost_folder(path)
            elif extension_of(path) and (path.is_file() or path.is_symlink()):
                found.setdefault(real / path.name, path)
    kept = [(path, place) for place, path in found.items() if not _is_linked_again(place, found)]
    return {place: path for path, place in sorted(kept)}


def _folders_below(roots: list[Path], argument: str) -> Iterator[tuple[Path, Path, list[str]]]:
    """Real path, path and names of files of each folder, none of them hidden.

    Links are followed once all that is reached without them is known: a real path goes before a link to it, and a
    loop ends where it comes back.
    """
    seen, waiting = set(), deque(roots)
    while waiting:
        for folder, inside, files in os.walk(waiting.popleft(), onerror=partial(_refuse_folder, argument)):
            real = os.path.realpath(folder)
            if real in seen:
                inside.clear()
                continue
            seen.add(real)
            visible = sorted(name for name in inside if not name.startswith("."))
            links = [name for name in visible if Path(folder, name).is_symlink()]
            waiting += [Path(folder, name) for name in links]
            inside[:] = sorted(set(visible).difference(links))  # what os.walk goes down to
            yield Path(real), Path(folder), [name for name in files if not name.startswith(".")]


def _refuse_folder(argument: str, error: OSError) -> None:
    raise UserError(f"{argument}: {error.filename} cannot be read ({error.strerror}); allow it or take it out")


def _refuse_lost_folder(path: Path) -> None:
    """A link without a target and without an extension may stand for a folder of scans, on a drive that is away."""
    try:
        path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} is a link to what is not here; mount or fetch it, or remove the link") from None
    except OSError:  # a link to itself: there is nothing to miss
        return


def _is_linked_again(place: Path, found: dict[Path, Path]) -> bool:
    """Whether this is a link to a file of the same name that was found too. Of another name, it means another scan."""
    if not place.is_symlink():
        return False
    target = Path(os.path.realpath(place))
    return target != place and target.name == place.name and target in found


def require_some(found: Collection[Path], paths: list[Path | str], ext: str | None, argument: str) -> None:
    if not found:
        wanted = ext or ", ".join(EXTENSIONS)
        raise UserError(f"{argument} {' '.join(map(str, paths))} holds no {wanted} volume; check the path and --ext")


def require_present(paths: list[Path]) -> None:
    """Refuse links whose target is missing, as git-annex and DataLad leave them for content that was not fetched."""
    for path in paths:
        if not path.exists():
            raise UserError(
                f"{path} is a link to a file that is not here; fetch it (datalad get, git annex get) or remove the link"
            )


# --- which files take part -----------------------------------------------------------------------------


def choose_files(
    scans: list[Path | str], masks: list[Path | str] | None, ext: str | None, names: tuple[str, str]
) -> tuple[list[Path], list[Path] | None]:
    """The scans among the volumes of one argument and the masks among those of the other; says what is left out.

    A file whose name does not tell what it is takes the role of its argument, of `scans` where it is under both.
    """
    under_scans = _volumes_for(SCAN, scans, ext, names[0])
    scan_roles = {place: _role_here(place, ext, SCAN) for place in under_scans}
    if SCAN not in scan_roles.values():
        kinds = " and ".join(sorted(map(_plural, set(scan_roles.values()))))
        raise UserError(f"{names[0]} {' '.join(map(str, scans))} holds {kinds} only; give the folder of the scans")
    under_masks = {} if masks is None else _volumes_for(MASK, masks, ext, names[1])
    roles = {place: _role_here(place, ext, MASK) for place in under_masks} | scan_roles
    scan_files = {place: path for place, path in under_scans.items() if roles[place] == SCAN}
    mask_files = {place: path for place, path in under_masks.items() if roles[place] == MASK}
    # A scan that is left out is not under `scans`, nor a mask under `masks` where there is such an argument.
    outside = {SCAN: f"scan outside {names[0]}", MASK: MASK if masks is None else f"mask outside {names[1]}"}
    unused = roles.keys() - scan_files.keys() - mask_files.keys()
    say_left_out((place, outside.get(roles[place], roles[place])) for place in unused)
    require_present([*scan_files.values(), *mask_files.values()])
    return list(scan_files.values()), None if masks is None else list(mask_files.values())


def _volumes_for(role: str, paths: list[Path | str], ext: str | None, argument: str) -> dict[Path, Path]:
    """`find_volumes`; refuses a file that was given by its own name though that says it is something else."""
    found = find_volumes(paths, argument)
    for path in paths:
        if not Path(path).is_dir() and (told := role_of(path)) not in (role, None):
            raise UserError(f"{argument} {path} is a {told} by its name; give {role}s here, or rename it if it is one")
    require_some([place for place in found if ext in (None, extension_of(place))], paths, ext, argument)
    return found


def _role_here(place: Path, ext: str | None, default: str) -> str:
    return role_of(place) or default if ext in (None, extension_of(place)) else f"{extension_of(place)} file"


def say_left_out(files: Iterable[tuple[Path, str]]) -> None:
    """One line on the files that take no part, counted by what they are."""
    kinds = defaultdict(list)
    for path, kind in files:
        kinds[kind].append(path.name)
    told = [f"{counted(len(n), kind)} ({min(n)}{', ...' if len(n) > 1 else ''})" for kind, n in sorted(kinds.items())]
    if told:
        print(f"Left out: {', '.join(told)}")


def counted(count: int, what: str) -> str:
    return f"{count} {what if count == 1 else _plural(what)}"


def _plural(what: str) -> str:
    """Of "brain mask" and of "prediction of an earlier run", say."""
    return re.sub(r"(?= of | outside |$)", "s", what, count=1)
