"""From checkpoints of both stages to a model folder of ONNX networks."""

from pathlib import Path

import onnx

from data.scans.contrast import require_contrast
from data.scans.fingerprints import content_digest
from models.checkpoints import load_model, require_channels, require_spacing
from models.export.card import model_card
from models.export.exported import NETWORKS, SETTINGS, DetectorSettings, ExportedModel, SegmenterSettings, write_model
from models.export.networks import OPSET, export_stage_1, export_stage_2, halve_weights
from models.rpn.module import RPN
from models.rpn.settings import STRIDES
from models.segmentation.module import StrokeFormer
from models.segmentation.settings import SUBVOLUME_DEPTH
from models.segmentation.windows import DEFAULT_OVERLAP
from utils.errors import UserError
from utils.files import atomic_path, write_text
from utils.provenance import describe_program

PACKAGES = ("torch", "torchvision", "monai", "onnx", "onnxscript")
SMALLEST_DETECTION = 1e-2  # pixels; torchvision has it in the code of `RoIHeads.postprocess_detections`


def export(rpn_path: str, path: str, folder: Path, half: bool) -> None:
    """Write the model folder of two checkpoints, with weights in `half` precision or in full.

    Raises:
        UserError: checkpoints that do not fit together, or that do not hold the grid that they were trained on.
    """
    rpn, model = load_model(RPN, rpn_path).cpu(), load_model(StrokeFormer, path).cpu()
    grid = model.grid
    if grid is None:
        raise UserError(f"{path} holds no grid that it was trained on; train it anew")
    require_channels(grid.scan_dim[0], rpn, rpn_path)
    require_spacing(grid.spacing_mm, rpn, rpn_path, "take a network of stage 1 of that size")
    require_contrast((), rpn.contrast, rpn_path, model.contrast)
    (folder / SETTINGS).unlink(missing_ok=True)  # an earlier model's must not stand for this one's networks
    stage_1 = detector_settings(rpn, grid.shape[1:])
    networks = *export_stage_1(rpn, stage_1.scale, grid.shape[1:]), export_stage_2(model)
    for name, network in zip(NETWORKS, networks, strict=True):
        network = halve_weights(network) if half else network
        onnx.checker.check_model(network, full_check=True)  # with the shapes of all that it computes
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(network.SerializeToString())
    weights, digests = "float16" if half else "float32", {name: content_digest([folder / name]) for name in NETWORKS}
    contrast = model.contrast or rpn.contrast
    exported = ExportedModel(grid, contrast, stage_1, segmenter_settings(model), OPSET, weights, digests)
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


def segmenter_settings(model: StrokeFormer) -> SegmenterSettings:
    """What surrounds the network of stage 2; windows as ``test_strokeformer.py`` lays them by default."""
    names = ("roi_size", "num_classes", "lesion_threshold", "smallest_lesion_cm3")
    settings = {name: model.hparams[name] for name in names}
    return SegmenterSettings(window=model.window, overlap=DEFAULT_OVERLAP, subvolume_depth=SUBVOLUME_DEPTH, **settings)
