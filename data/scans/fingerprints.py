"""What a result was made of: digests of files' contents, and the version of what prepared them."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from data.files.volumes import refusing
from data.scans.cohort import Case
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.progress import map_in_order

_blake2b = partial(hashlib.blake2b, digest_size=16)
# Raised by hand when the same scan is prepared differently: what was kept under another one is made anew. A test holds
# the digest of one prepared scan, so that nobody changes the preparation and forgets it.
PREPARATION_VERSION = 2


def fingerprint(
    groups: Mapping[str, Sequence[Path]],
    store: Path,
    num_workers: int = 0,
    look: Callable[[Sequence[Path]], str] | None = None,
    what: str = "Fingerprints",
) -> dict[str, str]:
    """The digest of each group of files by the group's name.

    Args:
        store: JSON file of the digests, ``{name: {"files", "stamp", "digest"}}``: files whose size and times are
            unchanged are not read again. Afterwards it holds these groups and no others.
        look: reads the files of a group for their digest, and may refuse them; None for `content_digest`.
        what: label of the progress bar.
    """
    earlier = _read_store(store)
    stamps = {name: _stamp(files) for name, files in groups.items()}
    changed = [name for name in groups if name not in earlier or earlier[name]["stamp"] != stamps[name]]
    results = map_in_order(look or content_digest, [groups[name] for name in changed], num_workers, what)
    digests = {name: entry["digest"] for name, entry in earlier.items()}
    digests.update(zip(changed, results, strict=True))
    entries = {
        name: {"files": [str(file.absolute()) for file in files], "stamp": stamps[name], "digest": digests[name]}
        for name, files in groups.items()
    }
    if entries != earlier:
        write_json(store, entries)
    return {name: digests[name] for name in groups}


def fingerprint_cases(cases: Iterable[Case], store: Path, num_workers: int = 0) -> dict[str, str]:
    """The digest of scan and mask of each case by the scan's file name."""
    return fingerprint({case.name: case_files(case) for case in cases}, store, num_workers)


def case_files(case: Case) -> list[Path]:
    """Scan and, where there are, lesion and brain mask."""
    return [path for path in (case.scan, case.mask, case.brain) if path]


def changed_since(store: Path) -> list[str]:
    """The groups of a `store` whose files are all there, but no longer as they were."""
    changed = []
    for name, earlier in _read_store(store).items():
        files = [Path(file) for file in earlier["files"]]
        is_new = all(file.is_file() for file in files) and _stamp(files) != earlier["stamp"]
        if is_new and content_digest(files) != earlier["digest"]:
            changed.append(name)
    return changed


def check_sources(augmented_dir: Path, digests: Mapping[str, str]) -> None:
    """Refuse augmented scans made of other versions of the cohort's scans, whose digests go by the scan's name."""
    for name, origin in read_json(augmented_dir / "provenance.json").items():
        for scan, digest in origin.get("sources", {}).items():
            if digests.get(scan, digest) != digest:
                raise UserError(f"{augmented_dir / 'Scans' / name} was made before {scan} changed; augment anew")


def content_digest(files: Sequence[Path]) -> str:
    """Of the content of files, in their order."""
    digests = []
    for file in files:
        with refusing(file), file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, _blake2b).digest())
    return _hash(b"".join(digests))


def combined(parts: Mapping[str, str]) -> str:
    """One digest of many, whatever their order."""
    return _hash(repr(sorted(parts.items())).encode())


def cache_key(*parts) -> str:
    """What tells the folder or file of a cache from those of other parts; parts are told apart by their `repr`."""
    return _hash(repr(parts).encode())[:12]


def _read_store(store: Path) -> dict[str, dict]:
    try:
        entries = read_json(store) if store.exists() else {}
        return {name: {key: entry[key] for key in ("files", "stamp", "digest")} for name, entry in entries.items()}
    except (UserError, AttributeError, KeyError, TypeError):
        return {}  # without it the files are read again


def _stamp(files: Sequence[Path]) -> str:
    """Differs where a file was written again, even with its old time and size: the change time cannot be set."""
    return _hash(repr([stamp_of(file) for file in files]).encode())


def stamp_of(file: Path) -> tuple:
    with refusing(file):
        status = file.stat()
    return str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _hash(content: bytes) -> str:
    return _blake2b(content).hexdigest()
