"""What a GPU brings, and whether it says what a CPU says.

    python benchmarks/gpu.py --out_dir runs/gpu --minutes 8                    # on the first GPU
    python benchmarks/gpu.py --out_dir runs/gpu --device cpu --tiny            # whether the program runs, in a minute

Synthetic heads at 1 mm on the default grid, and at 2 mm, with the batches of recipes/atlas.args. For each stage: the
samples a second of training steps, plain and with one measure after the other; the share of the time between steps, for
data and their augmentation; the memory of the GPU. The seconds of a volume, from file to file. How far what the shipped
model finds on a CPU and on the device lies apart. Tables are printed, and kept in gpu.json as soon as they are there.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from common import argument_parser, dice, opened, print_markdown
from costs import GRID, ROI_SIZE, draw_head, fastest

from data.batches.datamodules import RPNDataModule, SegmentationDataModule
from data.batches.sources import ScanSlices
from data.scans.grid import Grid
from data.scans.open import Cohort
from data.scans.prepared import PreparedScan
from data.settings import Loading
from models.pipeline import Prediction, TwoStage
from models.precision import precision_on, use_precision
from models.regions import rpn_source
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer
from models.training.devices import compile_network
from strokeformer import pretrained
from utils.files import write_json
from utils.provenance import describe_program

SAME = 1e-3  # the most by which the Dice of two devices may differ


@dataclass(frozen=True)
class Size:
    """What is measured on: heads, the networks' windows and slices, the batches of both stages, and steps timed."""

    grid: Grid
    spacing_mm: int
    window: tuple[int, int, int]
    image_size: int
    batch_sizes: tuple[int, int] = (16, 8)
    steps: int = 30
    workers: int = 8
    repeated: int = 20  # times that an epoch holds the two heads, or it would end after a few steps


ONE_MM = Size(GRID, 1, ROI_SIZE, 192)
TWO_MM = Size(Grid((1, 95, 96, 96), spacing_mm=(2.0,) * 3), 2, (32, 32, 32), 192)
TINY = Size(Grid((1, 24, 25, 29), spacing_mm=(8.0,) * 3), 8, (8, 8, 16), 64, (4, 4), 2, 0, 1)


@dataclass(frozen=True)
class Measure:
    """How a training is run."""

    precision: str = "32-true"
    channels_last: bool = False
    workers: bool = False
    batches: int = 1  # times as large
    compiled: bool = False


AHEAD = Measure("auto", channels_last=True, workers=True)
TRANSFORMS = ["flip", "affine", "contrast", "lesion_contrast"]  # of recipes/atlas.args
# Each adds to the one before it, the last two to `AHEAD`. To compile takes minutes, so that it comes last.
MEASURES = {
    "plain": Measure(),
    "channels last": Measure(channels_last=True),
    "half precision": Measure("auto", channels_last=True),
    "workers ahead": AHEAD,
    "batches of four times as many": replace(AHEAD, batches=4),
    "compiled": replace(AHEAD, compiled=True),
}


def build(
    stage: int, size: Size, cohort: Cohort, measure: Measure
) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """A stage's untrained network, and its batches."""
    batch_size = size.batch_sizes[stage - 1] * measure.batches
    loading = Loading(batch_size=batch_size, num_workers=size.workers if measure.workers else 0)
    cases = cohort.cases * size.repeated
    if stage == 1:
        ScanSlices(cohort.cases, cohort)  # lists the slices of each head once
        scans = ScanSlices(cases, cohort)
        model = RPN(image_size=size.image_size, slice_side=min(size.grid.shape[1:]))
        return model, RPNDataModule(scans, scans, loading, TRANSFORMS)
    return StrokeFormer(roi_size=size.window), SegmentationDataModule(
        cases, cohort.cases, None, cohort, size.window, loading, TRANSFORMS
    )


class Clock(pl.Callback):
    """Times the steps of a training after the first half of them, when the libraries have chosen their kernels."""

    def __init__(self, steps: int) -> None:
        self.steps, self.samples = steps, 0
        self.started = self.ended = self.waited = 0.0

    def on_train_batch_start(self, trainer, module, batch, batch_index) -> None:
        now = time.perf_counter()
        if trainer.global_step == self.steps:
            self.started = now
        elif trainer.global_step > self.steps:
            self.waited += now - self.ended

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)  # or computing would run on between steps
        self.ended = time.perf_counter()
        if trainer.global_step > self.steps:
            self.samples += len(batch["image"] if isinstance(batch, dict) else batch[0])


def train(
    model: pl.LightningModule, data: pl.LightningDataModule, measure: Measure, steps: int, device: torch.device
) -> dict[str, str]:
    """What the steps of a training take."""
    use_precision(measure.precision)
    clock = Clock(steps)
    if measure.channels_last:
        model.to(memory_format=torch.channels_last if isinstance(model, RPN) else torch.channels_last_3d)
    if measure.compiled:
        compile_network(model)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator=device.type, devices=1, max_steps=2 * steps, callbacks=[clock], limit_val_batches=0, **quiet
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer.fit(model, data)
    seconds = clock.ended - clock.started
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    return {
        "precision": precision_on(device),
        "steps/s": f"{steps / seconds:.1f}",
        "samples/s": f"{clock.samples / seconds:.1f}",
        "not computing": f"{clock.waited / seconds:.0%}",
        "GiB of the GPU": f"{memory:.2f}",
    }


def rates(
    size: Size, cohort: Cohort, measures: dict[str, Measure], device: torch.device, until: float
) -> Iterator[dict[str, str]]:
    """A row for each stage and measure that begins in time."""
    for what, measure in measures.items():
        for stage in (1, 2):
            if time.monotonic() > until:
                print(f"No time left for stage {stage}, {what}; --minutes gives more")
                continue
            torch.manual_seed(0)
            row = train(*build(stage, size, cohort, measure), measure, size.steps, device)
            torch._dynamo.reset()
            yield {"stage": str(stage), "mm": str(size.spacing_mm), "measure": what, **row}


def volume(size: Size, cohort: Cohort, device: torch.device, out_dir: Path) -> dict[str, str]:
    """Seconds of a head from file to file, with untrained networks."""
    rpn, model = RPN().to(device).eval(), StrokeFormer(roi_size=size.window).to(device).eval()
    return fastest(cohort.cases[0], rpn, model, out_dir / "predicted.nii.gz")


def agreement(scan: PreparedScan, device: torch.device, precision: str) -> dict[str, str]:
    """How far what the shipped model finds on a device lies from what it finds on the CPU in 32 bit."""
    rpn, model = pretrained("t1w")

    def predicted(where: str | torch.device, how: str) -> Prediction:
        use_precision(how)
        for network in (rpn, model):
            network.to(where)
        return TwoStage(model, rpn_source(rpn, model.hparams["roi_size"])).predict(scan)

    expected, actual = predicted("cpu", "32-true"), predicted(device, precision)
    assert scan.mask is not None
    dices = [dice(found.lesions_on_grid, scan.mask) for found in (expected, actual)]
    apart = abs(dices[0] - dices[1])
    return {
        "precision": precision_on(device),
        "Dice on the CPU": f"{dices[0]:.4f}",
        "difference": f"{apart:.1e} ({'the same' if apart < SAME else 'NOT the same'})",
        "largest of a probability": f"{np.abs(expected.probabilities - actual.probabilities).max():.1e}",
        "regions": f"{len(expected.regions or [])}, {len(actual.regions or [])}",
    }


class Results:
    """Tables by name, written as soon as they have a row more."""

    def __init__(self, out_dir: Path, device: torch.device) -> None:
        self.file, self.tables = out_dir / "gpu.json", dict[str, list[dict[str, str]]]()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.about = {"device": name, "command": sys.argv, **describe_program()}

    def add(self, table: str, row: dict[str, str]) -> None:
        self.tables.setdefault(table, []).append(row)
        write_json(self.file, {**self.about, **self.tables})

    def show(self) -> None:
        print(self.about["device"])
        for name, rows in self.tables.items():
            print(f"\n{name}\n")
            print_markdown(rows)


def cohort_of(size: Size, out_dir: Path) -> Cohort:
    folder = out_dir / f"{size.spacing_mm}mm"
    draw_head(folder, size.spacing_mm, n_subjects=2)
    return opened(folder / "cohort", size.grid, [folder / "cohort/TrueBrains"])


def parse_args() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8, help="after them no further training begins")
    parser.add_argument("--tiny", action="store_true", help="small heads and few steps: whether the program runs")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.exit(2, "benchmarks/gpu.py: error: there is no GPU here; --device cpu --tiny shows that it runs\n")
    return options


def main() -> None:
    options = parse_args()
    until, device, out_dir = time.monotonic() + 60 * options.minutes, torch.device(options.device), options.out_dir
    out_dir.mkdir(parents=True, exist_ok=True)
    results = Results(out_dir, device)
    size = TINY if options.tiny else ONE_MM
    heads = cohort_of(size, out_dir)
    *quick, compiled = MEASURES
    for row in rates(size, heads, {what: MEASURES[what] for what in quick}, device, until):
        results.add("Training", row)
    if not options.tiny:  # its grid is not that of shipped models, and a CPU compiles for minutes
        results.add("A volume", volume(size, heads, device, out_dir))
        small_heads = cohort_of(TWO_MM, out_dir)
        for precision in ("32-true", "auto"):
            results.add("Both devices", agreement(small_heads.prepare(small_heads.cases[0]), device, precision))
        ahead = rates(TWO_MM, small_heads, {"workers ahead": AHEAD}, device, until)
        for row in chain(ahead, rates(ONE_MM, heads, {compiled: MEASURES[compiled]}, device, until)):
            results.add("Training", row)
    results.show()


if __name__ == "__main__":
    main()
