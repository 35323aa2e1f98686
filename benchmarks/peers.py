"""StrokeFormer beside networks over the whole volume (`whole_volume.py`) that had as much time to learn the same scans.

    python benchmarks/peers.py --out_dir runs/peers [--methods ours meshnet] [--seeds 42] [--minutes 45] [--table]

Synthetic DWI at 2 mm: 60 scans to train on and 12 for validation; to test on 80 like them, 80 shifted ones with
stronger warps, fainter lesions and worse scanners, and 20 at 1 mm. Half of each have lesions with the shapes of real
masks, of which each cohort has its own. Peers learn for ``--minutes`` of a core. Ours counts epochs: `epochs_in` gives
those that take about as long with all that surrounds them, and the table tells what each took. All choose thresholds
and components on the validation scans by the same code, and ``test_strokeformer.py`` scores all, with the same sliding
window: overlaps of a quarter, no mirror images.

Each method and seed is a job with one thread. What is there already is not made again, so that jobs may run in several
sittings, and beside each other. Of an interrupted training of ours the last sitting's time alone is told.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import common
import nibabel as nib
import numpy as np
import pandas as pd
import torch
import whole_volume
from common import print_markdown

import strokeformer
from data.scans.folds import Fold, cases_of
from data.scans.grid import Grid
from models.evaluation.segmentation import PER_LESION_FILE, PER_SCAN_FILE, read_rows
from models.precision import has_bfloat16
from models.training.settings import StrokeFormerTraining
from models.training.strokeformer import decide
from utils.compare.__main__ import compare
from utils.files import locked, read_json, write_json
from utils.scores.subgroups import volume_bins

OURS, CONTRAST = "ours", "dwi"
METHODS = (OURS, *whole_volume.PEERS)
GRID = Grid((1, 73, 112, 112), spacing_mm=(2.0,) * 3)  # that of the recipe
# Slices of 128 pixels in place of 192 take half of the time.
SETTINGS = ["@recipes/isles_dwi.args", "--spacing", 2, 2, 2, "--rpn_image_size", 128]
SCORES = ["lesion_f1_isles26", "lesion_precision_isles26", "lesion_recall_isles26", "dice", "false_lesions_isles26"]
TIMED = 4  # scans of which the seconds a volume are the mean, behind a first one


class Drawn(NamedTuple):
    """How a cohort is drawn."""

    n_subjects: int
    seed: int
    spacing_mm: float = 2
    shift: tuple = ()


DEVELOPMENT = "development"
TESTS = {
    "alike": Drawn(80, 230),
    "shifted": Drawn(80, 240, 2, (*common.SHIFT, "--variety", 0.8)),
    "fine": Drawn(20, 250, 1),
}
COHORTS = {DEVELOPMENT: Drawn(74, 210), **TESTS}


def draw_cohorts(out_dir: Path, lesion_masks: Path, share: float) -> None:
    """Draw a share of each cohort, one half with drawn lesions and one with those of masks."""
    masks = sorted(lesion_masks.glob("*.nii*"))
    for number, (name, drawn) in enumerate(COHORTS.items()):
        folder, n_subjects = out_dir / name, max(1, round(drawn.n_subjects * share / 2))
        for mask in masks[number :: len(COHORTS)]:
            common.link(mask, folder / "shapes" / mask.name)
        look = ["--modality", CONTRAST, "--stripped", "--oblique", "--ext", ".nii.gz", *drawn.shift]
        for i, (half, shapes) in enumerate({"drawn": [], "traced": ["--lesion_masks", folder / "shapes"]}.items()):
            spacing_mm = (drawn.spacing_mm,)
            cases = common.draw(folder / half, drawn.seed + i, n_subjects, *look, *shapes, spacing_mm=spacing_mm)
            for path in [path for case in cases for path in (case.scan, case.mask)]:
                common.link(path, folder / path.parent.name / path.name.replace("strokecase", half))


def split(subjects: list[str]) -> Fold:
    """Training, validation and the few that a fold has to test, each with both kinds of lesions."""
    val, test = subjects[2::6], [subjects[0], subjects[-1]]
    return Fold([subject for subject in subjects if subject not in {*val, *test}], val, test)


def epochs_in(minutes: float) -> tuple[int, int]:
    """Epochs of both stages, of 60 scans: some 2.5 and 0.5 minutes each of a core, half of it with bfloat16."""
    faster = 2 if has_bfloat16(torch.device("cpu")) else 1
    return max(1, round(faster * minutes / 10)), max(1, round(1.2 * faster * minutes))


def train(out_dir: Path, folder: Path, method: str, seed: int, minutes: float) -> dict[str, float]:
    """A network, and the time that all of it took."""
    cohort = common.opened(out_dir / DEVELOPMENT, GRID)
    fold = split([case.subject for case in cohort.cases])
    if method == OURS:
        rpn_epochs, epochs = epochs_in(minutes)
        length = ["--max_epochs", epochs, "--patience", epochs, "--rpn_max_epochs", rpn_epochs]
        pictures = ["--num_samples", 0, "--n_predictions", 0]
        common.cross_validate(folder, out_dir / DEVELOPMENT, fold, OURS, seed, *SETTINGS, *length, *pictures)
    else:
        scans = [cohort.prepare(case) for case in cases_of(cohort.cases, fold.train)]
        model, checkpoint = whole_volume.train(method, scans, 60 * minutes, seed), networks(folder, method)[0]
        whole_volume.save(checkpoint, model, GRID, CONTRAST)
        decide(StrokeFormerTraining(), cases_of(cohort.cases, fold.val), None, cohort, folder, checkpoint)
    return {"minutes to learn": common.processor_seconds() / 60}


def networks(folder: Path, method: str) -> list[Path]:
    """The checkpoint of the network that segments, and of ours that of stage 1."""
    if method != OURS:
        return [folder / "best.ckpt"]
    return [common.checkpoint_of(folder, stage, OURS) for stage in (common.STAGE_2, common.STAGE_1)]


def test(out_dir: Path, folder: Path, method: str, cohort: str) -> dict[str, float]:
    """Score a test cohort; what a scan costs from file to file."""
    import test_strokeformer as script

    data, (network, *proposer) = out_dir / cohort, networks(folder, method)
    model, rpn = strokeformer.load_strokeformer(network), strokeformer.load_rpn(proposer) if proposer else None
    seconds = []
    for scan in sorted((data / "Scans").iterdir())[: 1 + TIMED]:
        started = time.process_time()
        nib.save(strokeformer.segment(scan, rpn, model), folder / "timed.nii.gz")
        seconds.append(time.process_time() - started)
    parameters = sum(p.numel() for part in (model, rpn) if part for p in part.parameters())
    memory = common.peak_memory_gib()
    words = ["--scans", data / "Scans", "--masks", data / "Masks", "--ckpt_path", network, "--n_predictions", 0]
    words += ["--rpn_ckpt_path", *proposer] if proposer else []
    words += ["--model_name", folder.name, "--scores_dir", scores_dir(folder.parent, cohort)]
    script.main(script.parse_args([str(word) for word in words]))
    return {"seconds a volume": float(np.mean(seconds[1:])), "GiB": memory, "million parameters": parameters / 1e6}


def scores_dir(run_dir: Path, cohort: str) -> Path:
    return run_dir / "scores" / cohort


def print_tables(run_dir: Path) -> None:
    for cohort in TESTS:
        if names := sorted(path.parent.name for path in run_dir.glob(f"*_seed-*/{cohort}.json")):
            table = pd.DataFrame({name: column_of(run_dir, cohort, name) for name in names})
            print_markdown(table.map("{:.2f}".format).rename_axis(cohort).reset_index().to_dict("records"))
            print_markdown(list(differences(run_dir, cohort, names)))


def column_of(run_dir: Path, cohort: str, name: str) -> dict[str, float]:
    """A network's mean scores, share of the lesions that it found by their volume, and cost."""
    folder = scores_dir(run_dir, cohort)
    scans, lesions = (read_rows(folder / file, [name]) for file in (PER_SCAN_FILE, PER_LESION_FILE))
    true = lesions[lesions.kind == "lesion"]
    found = true.found.astype(float).groupby(volume_bins(true.volume_cm3), observed=False).mean()
    cost = [read_json(run_dir / name / file) for file in (f"{cohort}.json", "training.json")]
    return {**scans[SCORES].mean(), **{f"found, {size}": share for size, share in found.items()}, **cost[0], **cost[1]}


def differences(run_dir: Path, cohort: str, names: list[str]) -> Iterator[dict]:
    """For each score ours against the peer that is best in it, scan by scan, means over the seeds."""
    scans = read_rows(scores_dir(run_dir, cohort) / PER_SCAN_FILE, names)
    scans["method"] = scans.model_name.str.partition("_")[0]
    means = {method: rows.groupby("scan")[SCORES].mean() for method, rows in scans.groupby("method")}
    ours = means.pop(OURS, None)
    for score in SCORES if means and ours is not None else ():
        best = min if score.startswith("false") else max
        peer = best(means, key=lambda method: means[method][score].mean())
        (change,) = compare(means[peer][[score]], ours[[score]], seed=0).itertuples()
        interval = f"{change.difference:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
        yield {cohort: score, "best peer": peer, "ours less the peer's": interval, "p": f"{change.p:.2g}"}


def do(out_dir: Path, minutes: float, seed: int, method: str) -> None:
    """Train and test a network, unless it is done already."""
    folder = run_dir_of(out_dir, minutes) / f"{method}_seed-{seed}"
    steps = {"training": partial(train, out_dir, folder, method, seed, minutes)}
    for step, work in (steps | {cohort: partial(test, out_dir, folder, method, cohort) for cohort in TESTS}).items():
        if not (folder / f"{step}.json").exists():
            # A process of its own, whose time and memory are the network's alone.
            with ProcessPoolExecutor(1, get_context("spawn"), whole_volume.register) as own:
                write_json(folder / f"{step}.json", own.submit(work).result())


def run_dir_of(out_dir: Path, minutes: float) -> Path:
    return out_dir / f"{minutes:g}_minutes"


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--lesion_masks", type=Path, default=common.ROOT.parent / "shared/lesions/masks")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43])
    parser.add_argument("--minutes", type=float, default=180, help="of a core, to learn in")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time")
    parser.add_argument("--share", type=float, default=1, help="of each cohort, for trials")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    out_dir, minutes = options.out_dir, options.minutes
    if not options.table:
        os.environ["OMP_NUM_THREADS"] = "1"
        with locked(out_dir / "cohorts"):
            draw_cohorts(out_dir, options.lesion_masks, options.share)
        with ThreadPoolExecutor(options.jobs) as pool:
            jobs = product(options.seeds, options.methods)
            list(pool.map(lambda job: do(out_dir, minutes, *job), jobs))
    print_tables(run_dir_of(out_dir, minutes))


if __name__ == "__main__":
    main()
