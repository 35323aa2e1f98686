"""Files that are either whole or absent: atomic writes, JSON and CSV, locks, and room for them."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.progress import print_once

if TYPE_CHECKING:  # pandas is imported where it is used, so that ``--help`` answers at once
    import pandas as pd

# What an evaluation leaves beside the files that arguments name.
STAGE_1_TABLES = ("rpn_per_scan_scores.csv", "rpn_per_lesion_scores.csv", "rpn_per_size_scores.csv")
STAGE_2_TABLES = ("per_scan_scores.csv", "per_lesion_scores.csv", "volumes.csv", "per_group_scores.csv")
REGION_VOLUMES_FILE = "per_region_volumes.csv"  # with an atlas
PLACES_FILE = "places.json"  # in a model's folder, as `frequency_file`
UNDECODABLE = re.compile("[\udc80-\udcff]")  # what Python puts in the place of bytes of a name that are not UTF-8
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}  # the answers of file systems without locks


def expanded(path: Path | str) -> Path:
    """A path with the home folder in the place of ``~``; a shell expands it at the beginning of a word only."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"the home folder of {path} is unknown; give the whole path, or ./{path}") from None


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes otherwise.

    Its name keeps the suffixes of `path`, by which writers choose their format. A `UserError` says where the folder
    cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix="".join(path.suffixes[-2:]))
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes files that only their owner may read
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written ({error.strerror or error}); free or choose another place")


def require_writable(folder: Path | str, argument: str, n_bytes: int = 0) -> None:
    """Refuse a folder that cannot take files, or `n_bytes` of them, before hours are spent; leaves nothing behind."""
    folder = Path(folder)
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise UserError(f"{argument} {folder} cannot be written ({error.strerror}); choose another folder") from None
    if free < n_bytes:
        raise UserError(f"{argument} {folder} needs {n_bytes / 1e9:.1f} GB but {free / 1e9:.1f} GB are free; make room")


def write_text(path: Path | str, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_csv(path: Path | str, table: "pd.DataFrame") -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def write_json(path: Path | str, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path | str) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no readable JSON ({error})") from None


def intervals_file(scores_file: str) -> str:
    """The file with the intervals of the means in a file of scores, beside it."""
    path = Path(scores_file)
    return str(path.with_name(f"{path.stem}_intervals.csv"))


def frequency_file(whose: str) -> str:
    """The map of how many scans have a predicted or true lesion where."""
    return f"{whose}_frequency.nii.gz"


def read_scores(path: Path | str) -> "pd.DataFrame | None":
    """The table of scores of earlier runs, None where there is none yet; refuses another file."""
    import pandas as pd

    if not Path(path).exists():
        return None
    try:  # all cells are text, so that rows that are written back stay as they were
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError:
        table = pd.DataFrame()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); allow it or name another") from None
    if "model_name" not in table:
        raise UserError(f"{path} is no table of scores (it has no column model_name); move it or name another")
    return table


def rows_of(path: Path, name: str) -> str:
    """The rows of a model in a table of scores, as CSV; empty where there are none."""
    table = read_scores(path)
    own = None if table is None else table[table.model_name == name]
    return "" if own is None or own.empty else own.to_csv(index=False)


def update_table(path: Path | str, name: str, rows: "pd.DataFrame") -> None:
    """Put a model's rows, with its name as ``model_name``, in place of its earlier ones; those of other models stay."""
    import pandas as pd

    rows = rows.copy()
    rows.insert(0, "model_name", name)
    with locked(Path(path)):
        if (earlier := read_scores(path)) is not None:
            rows = pd.concat([earlier[earlier.model_name != name], rows], ignore_index=True)
        write_csv(path, rows)


def order_rows(path: Path | str, names: Sequence[str]) -> None:
    """Put the rows of these models behind all others of a table, in this order; a table that is not there stays so."""
    with locked(Path(path)):
        if (table := read_scores(path)) is None:
            return
        place = table.model_name.map({name: i for i, name in enumerate(names)}).fillna(-1)
        write_csv(path, table.loc[place.sort_values(kind="stable").index])


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from a file: folds that run at the same time write into the same tables.

    The lock is that of a hidden file beside it, which is gone afterwards; any user of the folder can take it.
    """
    place = path.with_name(f".{path.name}.lock")
    lock = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(place)
    except (OSError, ImportError) as error:  # Windows has no fcntl
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise _unwritable(path, error) from None
        place.unlink(missing_ok=True)
        print_once(f"{path.parent} has no locks: let one program at a time write into it")
    try:
        yield
    finally:
        if lock is not None:
            with suppress(OSError):  # in a folder where users remove only their own files another's stays
                place.unlink()
                os.ftruncate(lock, 1)
            os.close(lock)


def _lock(place: Path) -> int:
    """The descriptor of a lock file, once it is locked."""
    import fcntl

    while True:
        mask = os.umask(0)
        try:
            lock = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        finally:
            os.umask(mask)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = os.fstat(lock)
        except BaseException:
            os.close(lock)
            raise
        # Who held the lock before has removed the file: others lock a new one by now. NFS keeps a removed file that is
        # open under another name, so it also holds a byte then.
        if state.st_nlink and not state.st_size:
            return lock
        os.close(lock)
