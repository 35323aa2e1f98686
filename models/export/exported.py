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

SETTINGS, CARD = "model.json", "MODEL_CARD.md"
PROPOSALS, BOXES, SEGMENTER = "stage1_proposals.onnx", "stage1_boxes.onnx", "stage2.onnx"
NETWORKS = (PROPOSALS, BOXES, SEGMENTER)
FORMAT = 3  # of the folder; another number for what an earlier runner would misread


@dataclass(frozen=True)
class DetectorSettings:
    """Stage 1: what surrounds its two networks, and how their boxes become regions.

    Pixels are those of the network, which sees a voxel as `scale` of them.

    anchors: of each level of the pyramid, from fine to coarse, the boxes (A, 4) about a place, xyxy in pixels.
    strides: of the levels, in pixels.
    pooled_levels: how many of them, from the first on, the features of a box are taken from.
    canonical_side, canonical_level: a box of that side in pixels takes them from the level of that number, which is
        the binary logarithm of a stride (Lin et al., 2017, arXiv 1612.03144, eq. 1).
    candidates, proposals: anchors of a level that are looked at, and boxes of a slice that are left of them.
    proposal_iou, detection_iou: above which the less sure of two boxes is dropped.
    smallest_proposal, smallest_detection: shortest side in pixels.
    box_weights: what the four offsets of a detection are divided by.
    largest_log_scale: by which a box may be larger than what it was decoded from.
    detections, min_score: boxes of a slice that are returned, and their least score.
    consistency, score_threshold: as of `models.rpn.module.RPN`.
    """

    scale: float
    anchors: Sequence[Sequence[Sequence[float]]]
    strides: Sequence[int]
    pooled_levels: int
    canonical_side: float
    canonical_level: int
    candidates: int
    proposals: int
    proposal_iou: float
    smallest_proposal: float
    box_weights: Sequence[float]
    largest_log_scale: float
    min_score: float
    smallest_detection: float
    detection_iou: float
    detections: int
    consistency: str
    score_threshold: float


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


@dataclass(frozen=True)
class ExportedModel:
    """What a model folder holds beside its networks.

    grid: that both networks see.
    opset: of ONNX.
    weights: type in which they are stored, ``float32`` or ``float16``; computed is in float32.
    digests: of the networks' files by name.
    """

    grid: Grid
    stage_1: DetectorSettings
    stage_2: SegmenterSettings
    opset: int
    weights: str
    digests: dict[str, str]


def digests_of(folder: Path) -> dict[str, str]:
    """The digests of the networks in a model folder, by their files."""
    return {name: content_digest([folder / name]) for name in NETWORKS}


def write_model(folder: Path, model: ExportedModel, made_of: dict) -> None:
    """Write `SETTINGS`, the last of a model folder's files; `made_of` is a record for its readers alone."""
    fixed = {"format": FORMAT, "orientation": ORIENTATION, "normalisation_percentiles": PERCENTILES}
    write_json(folder / SETTINGS, {**fixed, **asdict(model), "made_of": made_of})


def read_model(folder: Path | str) -> ExportedModel:
    """The settings of a model folder, whose networks are those that it was written with.

    Raises:
        UserError: no such folder, settings that cannot be read or are of another version, another network.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise UserError(f"--model {folder} holds no {SETTINGS}; give a folder that python -m models.export wrote")
    content = read_json(folder / SETTINGS)
    try:
        model = _parse(content)
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / SETTINGS} is of another version of this program; export the model anew") from None
    for name in NETWORKS:
        if not (folder / name).is_file() or content_digest([folder / name]) != model.digests[name]:
            raise UserError(f"{folder / name} is not the network of its {SETTINGS}; copy the whole folder again")
    return model


def _parse(content: dict) -> ExportedModel:
    """Settings as `write_model` wrote them; raises a KeyError or TypeError for others."""
    known = {"format": FORMAT, "orientation": ORIENTATION, "normalisation_percentiles": list(PERCENTILES)}
    if {key: content[key] for key in known} != known:
        raise KeyError("format")
    two = content["stage_2"]
    return ExportedModel(
        Grid(**{name: value and tuple(value) for name, value in content["grid"].items()}),
        DetectorSettings(**content["stage_1"]),
        SegmenterSettings(**{**two, "roi_size": tuple(two["roi_size"]), "window": tuple(two["window"])}),
        content["opset"],
        content["weights"],
        {name: content["digests"][name] for name in NETWORKS},
    )
