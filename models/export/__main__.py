"""Export both stages as ONNX into a folder that ``python -m runner`` segments with, without PyTorch."""

from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

from utils import cli
from utils.defaults import SUBVOLUME_DEPTH
from utils.errors import UserError
from utils.files import require_writable

SMALLEST_DETECTION = 1e-2  # pixels; torchvision has it in the code of `RoIHeads.postprocess_detections`
PACKAGES = ("torch", "torchvision", "monai", "onnx", "onnxscript")


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--rpn_ckpt_path", required=True, help="RPN checkpoint")
    parser.add_argument("--ckpt_path", required=True, help="StrokeFormer checkpoint")
    parser.add_argument("--out_dir", required=True, help="folder of the exported model")
    parser.add_argument("--fp16", action="store_true", help="store weights in half precision, in half of the space")
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    for name in ("rpn_ckpt_path", "ckpt_path"):  # first: a wrong path is refused before the heavy libraries load
        if not Path(getattr(args, name)).is_file():
            raise UserError(f"--{name} {getattr(args, name)} does not exist; give the path of a .ckpt file")
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise UserError(f"{missing[0]} is not installed; pip install -r requirements.txt")
    require_writable(args.out_dir, "--out_dir")
    folder = Path(args.out_dir)
    export(args, folder)
    megabytes = sum(path.stat().st_size for path in folder.glob("*.onnx")) / 1e6
    print(f"The model is in {folder} ({megabytes:.1f} MB); complete its card before you hand it on")


def export(args: Namespace, folder: Path) -> None:
    """Write the model folder that `args`, those of the command, ask for."""
    from data.batches.context import window_channels
    from data.scans.fingerprints import content_digest
    from models.checkpoints import load_rpn, load_strokeformer, require_channels, require_spacing
    from models.export.card import model_card
    from models.export.exported import (
        BOXES,
        CARD,
        PROPOSALS,
        SEGMENTER,
        SETTINGS,
        ExportedModel,
        digests_of,
        write_model,
    )
    from models.export.networks import OPSET, export_stage_1, export_stage_2, halve_weights, write_network
    from utils.files import write_text
    from utils.provenance import describe_run

    rpn, model = load_rpn(args.rpn_ckpt_path).cpu(), load_strokeformer(args.ckpt_path).cpu()
    grid = model.grid
    if grid is None:
        raise UserError(f"{args.ckpt_path} does not tell the grid that it was trained on; train it anew")
    require_channels(grid.scan_dim[0], rpn, args.rpn_ckpt_path)
    require_spacing(grid.spacing_mm, rpn, args.rpn_ckpt_path, "take a network of stage 1 of that size")
    (folder / SETTINGS).unlink(missing_ok=True)  # an earlier model's must not stand for this one's networks
    stage_1 = detector_settings(rpn, grid.shape[1:])
    finder, judge = export_stage_1(rpn, stage_1.scale, grid.shape[1:])
    segmenter = export_stage_2(model, window_channels(model.hparams.in_channels, model.hparams.seg_context))
    for name, network in {PROPOSALS: finder, BOXES: judge, SEGMENTER: segmenter}.items():
        write_network(folder / name, halve_weights(network) if args.fp16 else network)
    weights = "float16" if args.fp16 else "float32"
    exported = ExportedModel(grid, stage_1, segmenter_settings(model), OPSET, weights, digests_of(folder))
    write_text(folder / CARD, model_card(exported, args.rpn_ckpt_path, args.ckpt_path))
    checkpoints = {name: content_digest([Path(getattr(args, name))]) for name in ("rpn_ckpt_path", "ckpt_path")}
    made_of = {key: value for key, value in describe_run({}, PACKAGES).items() if key in ("git_commit", "versions")}
    write_model(folder, exported, {"checkpoints": checkpoints, **made_of})


def detector_settings(model, shape: tuple[int, int]):
    """What surrounds the networks of an `RPN` that looks at slices of a shape (H, W), as `DetectorSettings`."""
    from models.export.exported import DetectorSettings
    from models.rpn.anchors import STRIDES

    detector, hp = model.detector, model.hparams
    rpn, heads, pool = detector.rpn, detector.roi_heads, detector.roi_heads.box_roi_pool
    return DetectorSettings(
        context=list(hp.context),
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
        consistency=hp.consistency,
        score_threshold=hp.score_threshold,
        evidence_growth=hp.evidence_growth,
    )


def segmenter_settings(model):
    """What surrounds the network of a `StrokeFormer`, as `SegmenterSettings`; windows as ``test_strokeformer.py`` lays
    them by default."""
    from models.export.exported import SegmenterSettings
    from models.segmentation.windows import DEFAULT_OVERLAP

    hp = model.hparams
    return SegmenterSettings(
        roi_size=list(hp.roi_size),
        window=list(model.window),
        context=list(hp.seg_context),
        num_classes=hp.num_classes,
        overlap=DEFAULT_OVERLAP,
        subvolume_depth=SUBVOLUME_DEPTH,
        lesion_threshold=hp.lesion_threshold,
        smallest_lesion_cm3=hp.smallest_lesion_cm3,
    )


if __name__ == "__main__":
    cli.run(main, parse_args)
