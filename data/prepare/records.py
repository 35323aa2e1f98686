"""The record of a prepared scan, its origin and its place: ``Geometry/<scan>.json`` beside the prepared volumes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files.names import stem_of
from data.files.space import Space
from utils.errors import UserError
from utils.files import read_json, write_json


@dataclass(frozen=True)
class Record:
    """A prepared scan."""

    source: str  # the original scan, relative to the root of its data set
    mask: str  # its mask, likewise
    made_of: str  # digest of the original files, the grid and the version of the preparation
    space: Space  # the prepared grid
    row: dict  # of ``cohort.csv``


def record_path(scan: Path | str, prepared_dir: Path) -> Path:
    """The record of a scan by its file name, original or prepared: both have the same stem."""
    return prepared_dir / "Geometry" / f"{stem_of(scan)}.json"


def write_record(path: Path, record: Record) -> None:
    space = {"shape": record.space.shape, "affine": record.space.affine.tolist()}
    sources = {"source": record.source, "mask": record.mask, "made_of": record.made_of}
    write_json(path, {**sources, **space, "row": record.row})


def read_record(path: Path) -> Record:
    content = read_json(path)
    try:
        space = Space(tuple(content["shape"]), np.array(content["affine"], float).reshape(4, 4))
        return Record(content["source"], content.get("mask", ""), content.get("made_of", ""), space, content["row"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no record of a prepared scan ({error!r}); remove it and prepare again") from None
