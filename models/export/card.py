"""The card of an exported model: what it was trained on, what it scores, what it is for, as far as its runs record."""

import csv
from pathlib import Path

from data.scans.grid import size_text
from models.export.exported import ExportedModel
from models.training.runs import folder_of, is_trained
from utils.files import read_json

UNKNOWN = "not recorded beside the checkpoint"

CARD = """# Model card

**Not a medical device.** This model has not been approved for clinical use. Nothing that it finds or misses may decide
on a diagnosis or a treatment.

## What it is

Two networks of [StrokeFormer](https://github.com/angelonazzaro/StrokeFormer) that find stroke lesions in a brain MRI:
stage 1 proposes regions, stage 2 segments them. Both are ONNX (opset {opset}, weights in {weights}), `model.json` has
what surrounds them. `python -m runner --model FOLDER --scans SCANS --out_dir OUT` segments scans with them.

| | |
| --- | --- |
| scans | {channels} channel(s), any voxel size and orientation, stripped or with a brain mask |
| grid | {grid} voxels (D x H x W){spacing} |
| windows of stage 2 | {window} voxels, overlap {overlap:g} |
| regions | rule `{consistency}`, evidence from {score_threshold:.3g} on |
| lesion | probability above {lesion_threshold:g}, at least {smallest_lesion_cm3:g} cm3 |

## Intended use

Research on scans of the contrast and the kind that it was trained on: lesion volumes and maps of a cohort, which
someone looks at. On other contrasts, scanners, ages and diseases its errors are unknown. It misses small lesions most.

## Data

| | training scans | validation scans |
| --- | --- | --- |
| stage 1 | {stage_1_train} | {stage_1_val} |
| stage 2 | {stage_2_train} | {stage_2_val} |

Whose scans, of which scanners and contrast, by whose consent: TO BE FILLED IN.

## Scores

On the validation scans, by which thresholds were chosen, so that they are better than on others:

| | |
| --- | --- |
| stage 1 | {stage_1_scores} |
| stage 2 | {stage_2_scores} |

On scans that no training saw: TO BE FILLED IN, with the number of scans and where they are from.
"""


def model_card(model: ExportedModel, rpn_ckpt: Path | str, ckpt: Path | str) -> str:
    """The card in Markdown, without any scan's name, given the checkpoints of both stages.

    What only people know is left to be filled in.
    """
    grid, one, two = model.grid, model.stage_1, model.stage_2
    run_1, run_2 = _run_of(rpn_ckpt), _run_of(ckpt)
    decision = {"threshold": two.lesion_threshold, "smallest_cm3": two.smallest_lesion_cm3}
    return CARD.format(
        opset=model.opset,
        weights=model.weights,
        channels=grid.scan_dim[0],
        grid=" x ".join(map(str, grid.shape)),
        spacing=f" of {size_text(grid.spacing_mm)} mm" if grid.spacing_mm else ", of unknown size",
        window=" x ".join(map(str, two.window)),
        overlap=two.overlap,
        consistency=one.consistency,
        score_threshold=one.score_threshold,
        lesion_threshold=two.lesion_threshold,
        smallest_lesion_cm3=two.smallest_lesion_cm3,
        stage_1_train=_count(run_1, "train"),
        stage_1_val=_count(run_1, "val"),
        stage_2_train=_count(run_2, "train"),
        stage_2_val=_count(run_2, "val"),
        stage_1_scores=_scores_at(run_1, "calibration.csv", {"threshold": one.score_threshold}),
        stage_2_scores=_scores_at(run_2, "decisions.csv", decision),
    )


def _run_of(checkpoint: Path | str) -> Path | None:
    """The folder of the training that left a checkpoint; None where it lies elsewhere."""
    folder = folder_of(Path(checkpoint).resolve())
    return folder if is_trained(folder) and (folder / "run.json").is_file() else None


def _count(run: Path | None, side: str) -> str:
    inputs = (run and read_json(run / "run.json").get("inputs")) or {}
    return str(sum(name.startswith(f"{side} ") for name in inputs) or UNKNOWN)


def _scores_at(run: Path | None, table: str, chosen: dict[str, float]) -> str:
    """The row of a run's table that was chosen, as text; `UNKNOWN` where there is none."""
    if run is None or not (run / table).is_file():
        return UNKNOWN
    with (run / table).open(newline="") as file:
        for row in csv.DictReader(file):
            if all(abs(float(row[name]) - value) < 1e-9 for name, value in chosen.items()):
                scores = {name: value for name, value in row.items() if name not in chosen and value}
                return ", ".join(f"{name.replace('_', ' ')} {float(value):.3g}" for name, value in scores.items())
    return UNKNOWN
