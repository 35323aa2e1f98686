"""Predictions as a BIDS derivative data set, which other programs read: lesion masks and probabilities, as BIDS 1.10
has it under "Imaging data types: segmentations" (https://bids-specification.readthedocs.io)."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from urllib.parse import quote

from data.files.listing import DESCRIPTION, PROGRAM, absolute, dataset_of, describe, is_own
from data.files.names import LESION, contrast_of, entities_of, extension_of
from data.files.volumes import write_like
from data.scans.cohort import Case
from models.pipeline import Prediction
from utils.errors import UserError
from utils.files import read_json, require_writable, write_json
from utils.provenance import git_commit
from utils.scores.masks import Decision

ARGUMENT = "--bids_derivatives"
CODE_URL = "https://github.com/angelonazzaro/StrokeFormer"
# By data type the entities that BIDS has for masks, in its order; what else a scan's name holds is left out.
ENTITIES = {
    "anat": ("sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "space", "chunk", "res", "label", "desc"),
    "dwi": ("sub", "ses", "acq", "rec", "dir", "run", "part", "space", "chunk", "res", "label", "desc"),
}
MASK, PROBABILITY = "mask", "probseg"  # suffixes
TEXTS = {
    MASK: f"Stroke lesions as predicted by {PROGRAM}",
    PROBABILITY: f"Probability of a stroke lesion by {PROGRAM}, 0 outside the brain and the proposed regions",
}


@dataclass(frozen=True)
class Derivative:
    """A data set of the lesions of some scans, on their own grids; `plan_derivative` makes one."""

    folder: Path
    names: dict[Path, str]  # of each scan, the path of its files below `folder`, without suffix and extension
    sources: dict[Path, str]  # of each scan, its BIDS URI
    links: dict[str, str]  # where the data sets in the URIs lie, by name

    def begin(self, settings: dict) -> Callable[[Case, Prediction], None]:
        """Write the description of the data set; returns what writes a case, with `settings` in each sidecar."""
        version = {"Version": commit} if (commit := git_commit()) else {}
        description = {
            "Name": f"Stroke lesions by {PROGRAM}",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": PROGRAM, **version, "CodeURL": CODE_URL}],
            "DatasetLinks": self.links,
        }
        write_json(self.folder / DESCRIPTION, description)
        return partial(self._write, settings)

    def _write(self, settings: dict, case: Case, prediction: Prediction) -> None:
        """Write a case's lesions and their probability with their sidecars."""
        source, resolution = self.sources[case.scan], entities_of(case.scan).get("res")
        sidecar = {
            "Type": "Lesion",
            "Manual": False,
            "Sources": [source],
            "SpatialReference": source,  # the scan's own grid, whatever space its name gives
            **({"Resolution": f"that of the source, res-{resolution}"} if resolution else {}),
            **settings,
        }
        for suffix, array in ((MASK, prediction.lesions), (PROBABILITY, prediction.lesion_probability)):
            path = self.folder / f"{self.names[case.scan]}_{suffix}"
            write_like(f"{path}.nii.gz", array, case.scan)
            write_json(f"{path}.json", {"Description": TEXTS[suffix], **sidecar})


def prediction_settings(
    name: str, files: Mapping[str, Sequence[str] | None], decision: Decision, flip_average: bool
) -> dict:
    """What made predictions, for the sidecars; `files` are the checkpoints and regions by their name there."""
    settings: dict[str, object] = {"Model": name}
    for key, paths in files.items():
        names, digests = [Path(path).name for path in paths or ()], [_sha256(path) for path in paths or ()]
        if names:
            alone = len(names) == 1
            settings |= {key: names[0] if alone else names, f"{key}SHA256": digests[0] if alone else digests}
    decided = {
        "LesionThreshold": decision.threshold,
        "SmallestLesionCm3": decision.smallest_cm3,
        "LesionWeights": list(decision.weights),
    }
    return {**settings, **decided, "FlipAverage": flip_average}


def _sha256(path: Path | str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plan_derivative(folder: Path | str, cases: list[Case]) -> Derivative:
    """The data set that will hold the lesions of the scans; nothing is written yet.

    Refuses a folder that takes no files, that is another data set, or that holds the scans; a ``.npy`` scan, one whose
    name BIDS cannot take, or two that would get the same name, in this run or an earlier one.
    """
    folder = absolute(folder)
    if (folder / DESCRIPTION).exists() and not is_own(folder):
        raise UserError(
            f"{ARGUMENT} {folder} holds another data set, by its {DESCRIPTION}; give a folder of its own, e.g. "
            f"{folder / 'derivatives/strokeformer'}"
        )
    for case in cases:
        if Path(os.path.realpath(case.scan.parent)).is_relative_to(os.path.realpath(folder)):
            raise UserError(f"{ARGUMENT} {folder} holds the scan {case.scan}; give a folder without scans")
    require_writable(folder, ARGUMENT)
    links = dict(describe(folder).get("DatasetLinks", {}))
    names = {case.scan: _derived_name(case.scan) for case in cases}
    sources = {scan: _source(scan, folder, links) for scan in names}
    first: dict[str, Path] = {}
    for scan, name in names.items():
        if (other := first.setdefault(name, scan)) != scan:
            raise UserError(f"{ARGUMENT}: {other} and {scan} would both become {name}; segment them into two folders")
        # An earlier run may have given the name to another scan, say the FLAIR of the same session.
        sidecar = folder / f"{name}_{MASK}.json"
        if sidecar.exists() and read_json(sidecar).get("Sources") != [sources[scan]]:
            raise UserError(f"{ARGUMENT}: {sidecar} is of another scan than {scan}; give another folder, or remove it")
    return Derivative(folder, names, sources, links)


def _derived_name(scan: Path) -> str:
    """``sub-1/ses-2/anat/sub-1_ses-2_acq-x_label-lesion`` of ``sub-1_ses-2_acq-x_T1w.nii.gz``."""
    entities = {**entities_of(scan), "label": LESION}
    if extension_of(scan) == ".npy":
        raise UserError(f"{ARGUMENT}: {scan} does not tell where it lies; give NIfTI scans, or leave the argument out")
    if "sub" not in entities:
        raise UserError(f"{ARGUMENT}: {scan} names no subject; rename it as in BIDS, e.g. sub-01_T1w.nii.gz")
    datatype = "dwi" if (contrast_of(scan) or "").lower() in ("dwi", "adc", "trace") else "anat"
    labels = {entity: entities[entity] for entity in ENTITIES[datatype] if entity in entities}
    for entity, label in labels.items():
        if not re.fullmatch(r"[0-9A-Za-z+]+", label):
            raise UserError(f"{ARGUMENT}: {scan} holds {entity}-{label}; rename it with letters and digits only")
    folders = [f"{entity}-{labels[entity]}" for entity in ("sub", "ses") if entity in labels]
    return "/".join([*folders, datatype, "_".join(f"{entity}-{label}" for entity, label in labels.items())])


def _source(scan: Path, folder: Path, links: dict[str, str]) -> str:
    """The BIDS URI of a scan; names its data set, or its folder, in `links` where that has no name yet."""
    path, dataset = absolute(scan), dataset_of(scan)
    # Where no root is described, the folder that holds those of the subjects stands in, or the scan's own.
    holders = (parent.parent for parent in path.parents if parent.name.startswith("sub-"))
    root = dataset or next(holders, path.parent)
    inside = folder.is_relative_to(root)  # then both move together
    where = os.path.relpath(root, folder) if inside else root.as_uri()
    kind = "raw" if dataset and describe(root).get("DatasetType", "raw") == "raw" else "scans"
    candidates = chain([kind], (f"{kind}{number}" for number in count(2)))
    name = next(name for name in candidates if links.get(name, where) == where)
    links[name] = where
    return f"bids:{name}:{quote(path.relative_to(root).as_posix())}"
