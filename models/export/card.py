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
| scans | {grid.scan_dim[0]} channel(s), any voxel size and orientation, stripped or with a brain mask |
| grid | {shape} voxels (D x H x W){spacing} |
| windows of stage 2 | {window} voxels, overlap {stage_2.overlap:g} |
| regions | rule `{stage_1.consistency}`, evidence from {stage_1.score_threshold:.3g} on |
| lesion | probability above {stage_2.lesion_threshold:g}, at least {stage_2.smallest_lesion_cm3:g} cm3 |

## Intended use

Research on scans of the contrast and the kind that it was trained on: lesion volumes and maps of a cohort, which
someone looks at. On other contrasts, scanners, ages and diseases its errors are unknown. It misses small lesions most.

## Data

| | training scans | validation scans |
| --- | --- | --- |
| stage 1 | {one[train]} | {one[val]} |
| stage 2 | {two[train]} | {two[val]} |

Whose scans, of which scanners and contrast, by whose consent: TO BE FILLED IN.

## Scores

On the validation scans, by which thresholds were chosen, so that they are better than on others:

| | |
| --- | --- |
| stage 1 | {one[scores]} |
| stage 2 | {two[scores]} |

On scans that no training saw: TO BE FILLED IN, with the number of scans and where they are from.
"""


def model_card(model: ExportedModel, rpn_ckpt: Path | str, ckpt: Path | str) -> str:
    """The card in Markdown, without any scan's name; what only people know is left to be filled in."""
    grid, stage_2 = model.grid, model.stage_2
    decision = {"threshold": stage_2.lesion_threshold, "smallest_cm3": stage_2.smallest_lesion_cm3}
    return CARD.format(
        **vars(model),
        shape=" x ".join(map(str, grid.shape)),
        spacing=f" of {size_text(grid.spacing_mm)} mm" if grid.spacing_mm else ", of unknown size",
        window=" x ".join(map(str, stage_2.window)),
        one=_record_of(rpn_ckpt, "calibration.csv", {"threshold": model.stage_1.score_threshold}),
        two=_record_of(ckpt, "decisions.csv", decision),
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
            if all(abs(float(row[name]) - value) < 1e-9 for name, value in chosen.items()):
                scores = {name: value for name, value in row.items() if name not in chosen and value}
                return ", ".join(f"{name.replace('_', ' ')} {float(value):.3g}" for name, value in scores.items())
    return UNKNOWN
