"""From checkpoints of both stages to a model folder of ONNX networks, and a card of what its runs record of it."""

import csv
from pathlib import Path

import onnx

from data.scans.fingerprints import content_digest
from data.scans.grid import size_text
from models.checkpoints import load_model, require_fit
from models.export.exported import NETWORKS, SETTINGS, DetectorSettings, ExportedModel, SegmenterSettings, write_model
from models.export.networks import OPSET, export_stage_1, export_stage_2
from models.export.weights import halve_weights
from models.rpn.module import RPN
from models.rpn.settings import STRIDES
from models.segmentation.module import StrokeFormer
from models.segmentation.settings import SUBVOLUME_DEPTH
from models.segmentation.windows import DEFAULT_OVERLAP
from models.training.runs import folder_of, is_trained
from utils.errors import UserError
from utils.files import atomic_path, read_json, write_text
from utils.provenance import describe_program
from utils.scores.proposals import SHARES

PACKAGES = ("torch", "torchvision", "monai", "onnx", "onnxscript")
SMALLEST_DETECTION = 1e-2  # pixels; torchvision has it in the code of `RoIHeads.postprocess_detections`
SCORES = (*SHARES, "dice", "lesion_f1", "found", "missed", "false")
UNKNOWN = "not recorded beside the checkpoint"

CARD = Path(__file__).with_name("card.txt")


def export(rpn_path: str, path: str, folder: Path, half: bool) -> None:
    """Write the model folder of two checkpoints, with weights in `half` precision or in full.

    Raises:
        UserError: checkpoints that do not fit together, or that do not hold the grid that they were trained on.
    """
    rpn, model = load_model(RPN, rpn_path).cpu(), load_model(StrokeFormer, path).cpu()
    grid = model.grid
    if grid is None:
        raise UserError(f"{path} holds no grid that it was trained on; train it anew")
    require_fit(rpn, rpn_path, grid, model.contrast)
    (folder / SETTINGS).unlink(missing_ok=True)  # an earlier model's must not stand for this one's networks
    stage_1 = detector_settings(rpn, grid.shape[1:])
    networks = *export_stage_1(rpn, stage_1.scale, grid.shape[1:]), export_stage_2(model)
    for name, network in zip(NETWORKS, networks, strict=True):
        network = halve_weights(network) if half else network
        onnx.checker.check_model(network, full_check=True)  # with the shapes of all that it computes
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(network.SerializeToString())
    weights, digests = "float16" if half else "float32", {name: content_digest([folder / name]) for name in NETWORKS}
    names = ("roi_size", "num_classes", "lesion_threshold", "smallest_lesion_cm3", "lesion_weights")
    # Windows as ``test_strokeformer.py`` lays them by default.
    windows: dict = {"window": model.window, "overlap": DEFAULT_OVERLAP, "subvolume_depth": SUBVOLUME_DEPTH}
    stage_2 = SegmenterSettings(**windows, **{name: model.hparams[name] for name in names})
    # The classifier of --cls_loss is no part of the networks.
    parameters = {"RPN": dict(rpn.hparams), "StrokeFormer": {**model.hparams, "cls_loss": None}}
    contrast = model.contrast or rpn.contrast
    exported = ExportedModel(grid, contrast, stage_1, stage_2, OPSET, weights, digests, parameters)
    write_text(folder / "MODEL_CARD.md", model_card(exported, rpn_path, path))
    checkpoints = {"rpn_ckpt_path": content_digest([Path(rpn_path)]), "ckpt_path": content_digest([Path(path)])}
    write_model(folder, exported, {"checkpoints": checkpoints, **describe_program(PACKAGES)})


def detector_settings(model: RPN, shape: tuple[int, int]) -> DetectorSettings:
    """What surrounds the networks of stage 1 where it looks at slices of a shape (H, W)."""
    detector = model.detector
    rpn, heads, pool = detector.rpn, detector.roi_heads, detector.roi_heads.box_roi_pool
    return DetectorSettings(
        scale=detector.image_size / (detector.slice_side or min(shape)),
        anchors=[cell.tolist() for cell in rpn.anchor_generator.cell_anchors],
        strides=list(STRIDES[: len(rpn.anchor_generator.cell_anchors)]),
        pooled_levels=len(pool.featmap_names),
        canonical_side=pool.canonical_scale,
        canonical_level=pool.canonical_level,
        candidates=rpn.pre_nms_top_n(),
        proposals=rpn.post_nms_top_n(),
        proposal_iou=rpn.nms_thresh,
        smallest_proposal=rpn.min_size,
        box_weights=list(heads.box_coder.weights),
        largest_log_scale=heads.box_coder.bbox_xform_clip,
        min_score=heads.score_thresh,
        smallest_detection=SMALLEST_DETECTION,
        detection_iou=heads.nms_thresh,
        detections=heads.detections_per_img,
        consistency=model.hparams["consistency"],
        score_threshold=model.hparams["score_threshold"],
    )


def model_card(model: ExportedModel, rpn_ckpt: Path | str, ckpt: Path | str) -> str:
    """The card in Markdown, without any scan's name; what only people know is left to be filled in."""
    grid, stage_2 = model.grid, model.stage_2
    chosen = {"constant": stage_2.lesion_weights[0]} if stage_2.lesion_weights else {"probability": 0.0}
    return CARD.read_text().format(
        **vars(model),
        shape=" x ".join(map(str, grid.shape)),
        spacing=f" of {size_text(grid.spacing_mm)} mm" if grid.spacing_mm else ", of unknown size",
        window=" x ".join(map(str, stage_2.window)),
        one=_record_of(rpn_ckpt, "calibration.csv", {"threshold": model.stage_1.score_threshold}),
        two=_record_of(ckpt, "decisions.csv", {"threshold": stage_2.lesion_threshold, **chosen}),
        components=", and likely to be one by the features of its component" if stage_2.lesion_weights else "",
    )


def _record_of(checkpoint: Path | str, table: str, chosen: dict[str, float]) -> dict[str, str]:
    """The numbers of scans, and the scores in the chosen row of a table, in the run that left a checkpoint."""
    folder = folder_of(Path(checkpoint).resolve())
    if not (is_trained(folder) and (folder / "run.json").is_file()):
        return dict.fromkeys(("train", "val", "scores"), UNKNOWN)
    inputs = read_json(folder / "run.json").get("inputs") or {}
    counts = {side: sum(name.startswith(f"{side} ") for name in inputs) for side in ("train", "val")}
    known = {side: str(count or UNKNOWN) for side, count in counts.items()}
    return {**known, "scores": _scores_at(folder / table, chosen)}


def _scores_at(table: Path, chosen: dict[str, float]) -> str:
    """The chosen row as text; `UNKNOWN` where there is none."""
    if not table.is_file():
        return UNKNOWN
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if all(row[name] and abs(float(row[name]) - value) < 1e-9 for name, value in chosen.items()):
                scores = {name: row[name] for name in SCORES if row.get(name)}
                return ", ".join(f"{name.replace('_', ' ')} {float(value):.3g}" for name, value in scores.items())
    return UNKNOWN
