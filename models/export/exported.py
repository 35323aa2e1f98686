"""A model folder: both networks as ONNX, and in one JSON what the steps before, between and behind them need.

``python -m models.export`` writes it and ``python -m runner`` reads it, so nothing here needs PyTorch.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data.scans.fingerprints import content_digest
from data.scans.grid import ORIENTATION, Grid
from data.scans.head import PERCENTILES
from utils.errors import UserError
from utils.files import read_json, write_json

SETTINGS = "model.json"
# By the class of the checkpoint that they are made of.
NETWORKS_OF = {"RPN": ("stage1_proposals.onnx", "stage1_boxes.onnx"), "StrokeFormer": ("stage2.onnx",)}
NETWORKS = tuple(name for names in NETWORKS_OF.values() for name in names)
PRETRAINED, SHIPPED = Path(__file__).parents[2] / "pretrained", ("t1w", "dwi", "flair")  # a folder of each contrast
# A runner refuses a model of others; another format for a folder that an earlier runner would misread.
FIXED = {"format": 6, "orientation": ORIENTATION, "normalisation_percentiles": list(PERCENTILES)}


@dataclass(frozen=True)
class DetectorSettings:
    """Stage 1: what surrounds its two networks, and how their boxes become regions.

    Pixels are those of the network. A box of `canonical_side` takes its features from the level of the pyramid with
    the number `canonical_level`, the binary logarithm of a stride (Lin et al., 2017, arXiv 1612.03144, eq. 1).
    """

    scale: float  # pixels of a voxel
    anchors: Sequence[Sequence[Sequence[float]]]  # of each level, from fine to coarse, (A, 4) about a place, xyxy
    strides: Sequence[int]  # of the levels
    pooled_levels: int  # how many of them, from the first on, the features of a box are taken from
    canonical_side: float
    canonical_level: int
    candidates: int  # anchors of a level that are looked at
    proposals: int  # boxes of a slice that are left of them
    proposal_iou: float  # above which the less sure of two boxes is dropped
    smallest_proposal: float  # shortest side
    box_weights: Sequence[float]  # what the four offsets of a detection are divided by
    largest_log_scale: float  # by which a box may be larger than what it was decoded from
    min_score: float  # of a detection
    smallest_detection: float  # shortest side
    detection_iou: float  # above which the less sure of two boxes is dropped
    detections: int  # boxes of a slice that are returned
    consistency: str  # as of `models.rpn.module.RPN`
    score_threshold: float  # as of `models.rpn.module.RPN`


@dataclass(frozen=True)
class SegmenterSettings:
    """Stage 2: windows (D, H, W) in voxels and what is lesion; all as of `models.segmentation.module.StrokeFormer`."""

    roi_size: tuple[int, int, int]
    window: tuple[int, int, int]
    num_classes: int
    overlap: float
    subvolume_depth: int
    lesion_threshold: float
    smallest_lesion_cm3: float
    lesion_weights: Sequence[float]


@dataclass(frozen=True)
class ExportedModel:
    """What a model folder holds beside its networks."""

    grid: Grid  # that both networks see
    contrast: str | None  # of the scans that they have learned; None where that is unknown
    stage_1: DetectorSettings
    stage_2: SegmenterSettings
    opset: int  # of ONNX
    weights: str  # type in which they are stored, "float32" or "float16"; computed is in float32
    digests: dict[str, str]  # of the networks' files by name
    hyper_parameters: dict[str, dict]  # of the checkpoints, by their class: what a training builds the networks with


def is_model(path: Path | str) -> bool:
    """Whether a path is a model folder."""
    return (Path(path) / SETTINGS).is_file()


def shipped_model(contrast: str | None) -> Path:
    """The folder of the model that comes with the program for scans of a contrast.

    Raises:
        UserError: there is none of this contrast, or the contrast is unknown (None).
    """
    names = ", ".join(SHIPPED)
    if contrast not in SHIPPED:
        held = f"of {contrast}" if contrast else "without a contrast in their names, or with several"
        raise UserError(f"scans {held}: the models that come with this program are of {names}; --contrast names one")
    if not is_model(PRETRAINED / contrast):
        raise UserError(f"{PRETRAINED / contrast} holds no model; make it with make pretrained-{contrast}")
    return PRETRAINED / contrast


def write_model(folder: Path, model: ExportedModel, made_of: dict) -> None:
    """Write `SETTINGS`, the last of a model folder's files; `made_of` is a record for its readers alone."""
    write_json(folder / SETTINGS, {**FIXED, **asdict(model), "made_of": made_of})


def read_model(folder: Path | str) -> ExportedModel:
    """The settings of a model folder, whose networks are those that it was written with.

    Raises:
        UserError: no such folder, settings that cannot be read or are of another version, another network.
    """
    folder = Path(folder)
    if not is_model(folder):
        raise UserError(f"{folder} holds no {SETTINGS}; give a folder that python -m models.export wrote")
    content = read_json(folder / SETTINGS)
    try:
        if {name: content[name] for name in FIXED} != FIXED:
            raise KeyError("format")
        two = content["stage_2"]
        model = ExportedModel(
            Grid(**{name: value and tuple(value) for name, value in content["grid"].items()}),
            content.get("contrast"),
            DetectorSettings(**content["stage_1"]),
            SegmenterSettings(**{**two, "roi_size": tuple(two["roi_size"]), "window": tuple(two["window"])}),
            content["opset"],
            content["weights"],
            {name: content["digests"][name] for name in NETWORKS},
            {kind: content["hyper_parameters"][kind] for kind in NETWORKS_OF},
        )
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / SETTINGS} is of another version of this program; export the model anew") from None
    for name in NETWORKS:
        if not (folder / name).is_file() or content_digest([folder / name]) != model.digests[name]:
            raise UserError(f"{folder / name} is not the network of its {SETTINGS}; copy the whole folder again")
    return model
