"""What a GPU brings, and whether it says what a CPU says.

    python benchmarks/gpu.py --out_dir runs/gpu                                # on the first GPU
    python benchmarks/gpu.py --out_dir runs/gpu --device cpu --tiny            # whether the program runs, in a minute

Synthetic heads at 1 mm on the default grid. First, for each stage, the samples a second of training steps, plain and
with one measure after the other; the share of the time in which the network waits for data; and the memory of the GPU.
Then the seconds of a volume, from file to file. Last, how far predictions on a CPU and on the device lie apart: the
networks are those that have just been trained, so that they find something.
"""

import argparse
import copy
import time
from dataclasses import dataclass
from itertools import product

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
from models.precision import precision_on, use_precision
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer
from models.training.devices import compile_network
from utils.regions.region import whole_volume

SAME = 1e-3  # the most by which the Dice of two devices may differ


@dataclass(frozen=True)
class Size:
    """What is measured on: heads, the networks' windows and slices, the batches of both stages, and steps timed."""

    grid: Grid
    spacing_mm: int
    window: tuple[int, int, int]
    image_size: int
    batch_sizes: tuple[int, int]
    steps: int
    workers: int


SIZES = {
    False: Size(GRID, 1, ROI_SIZE, 192, (32, 8), 30, 8),
    True: Size(Grid((1, 24, 25, 29), spacing_mm=(8.0,) * 3), 8, (8, 8, 16), 64, (4, 4), 2, 0),
}


@dataclass(frozen=True)
class Measure:
    """How a training is run; each of `MEASURES` adds to the one before it."""

    precision: str = "32-true"
    channels_last: bool = False
    compiled: bool = False
    workers: bool = False


TRANSFORMS = ["flip", "affine", "contrast", "lesion_contrast"]  # of recipes/atlas.args
MEASURES = {
    "plain": Measure(),
    "channels last": Measure(channels_last=True),
    "half precision": Measure("auto", True),
    "workers ahead": Measure("auto", True, workers=True),
    "compiled": Measure("auto", True, compiled=True, workers=True),
}


# --- training ------------------------------------------------------------------------------------------


def build(stage: int, size: Size, cohort: Cohort, workers: int) -> tuple:
    """A stage's untrained network, and its batches."""
    loading = Loading(batch_size=size.batch_sizes[stage - 1], num_workers=workers)
    if stage == 1:
        scans = ScanSlices(cohort.cases, cohort)
        model = RPN(image_size=size.image_size, slice_side=min(size.grid.shape[1:]))
        return model, RPNDataModule(scans, scans, loading, TRANSFORMS)
    regions = {case.name: [whole_volume(size.grid.shape)] for case in cohort.cases}
    data = SegmentationDataModule(cohort.cases, cohort.cases, regions, cohort, size.window, loading, TRANSFORMS)
    return StrokeFormer(roi_size=size.window), data


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
            torch.cuda.synchronize(module.device)  # so that waiting is waiting for data
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
        "samples/s": f"{clock.samples / seconds:.1f}",
        "waits for data": f"{clock.waited / seconds:.0%}",
        "GiB of the GPU": f"{memory:.2f}",
    }


# --- a volume ------------------------------------------------------------------------------------------


def difference(model: StrokeFormer, scan: PreparedScan, device: torch.device, precision: str) -> dict[str, str]:
    """How far a network's predictions of a scan on a device lie from those on the CPU in 32 bit."""
    on_cpu, on_device = (copy.deepcopy(model).to(where) for where in ("cpu", device))
    use_precision("32-true")
    expected = on_cpu.segment(scan, None)[1]
    use_precision(precision)
    actual = on_device.segment(scan, None)[1]
    dices = [dice(probabilities > 0.5, scan.mask) for probabilities in (expected, actual)]
    apart = abs(dices[0] - dices[1])
    return {
        "precision": precision_on(device),
        "Dice on the CPU": f"{dices[0]:.4f}",
        "difference": f"{apart:.1e} ({'the same' if apart < SAME else 'NOT the same'})",
        "largest of a probability": f"{np.abs(expected - actual).max():.1e}",
    }


# --- all of it -----------------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small heads and few steps: whether the program runs")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.exit(2, "benchmarks/gpu.py: error: there is no GPU here; --device cpu --tiny shows that it runs\n")
    return options


def main() -> None:
    options = parse_args()
    device, size, out_dir, rows, trained = torch.device(options.device), SIZES[options.tiny], options.out_dir, [], {}
    draw_head(out_dir, size.spacing_mm, n_subjects=2)
    cohort = opened(out_dir / "cohort", size.grid, [out_dir / "cohort/TrueBrains"])
    # To compile takes minutes on a CPU.
    measures = {what: measure for what, measure in MEASURES.items() if not (options.tiny and measure.compiled)}
    for stage, (what, measure) in product((1, 2), measures.items()):
        torch.manual_seed(0)
        model, data = build(stage, size, cohort, size.workers if measure.workers else 0)
        rows.append({"stage": stage, "measure": what, **train(model, data, measure, size.steps, device)})
        trained[stage] = model.to(device).eval()
        torch._dynamo.reset()
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU")
    print_markdown(rows)
    use_precision("auto")
    if not options.tiny:  # its seconds are those of the default grid
        print_markdown([fastest(cohort.cases[0], trained[1], trained[2], out_dir / "predicted.nii.gz")])
    scan = cohort.prepare(cohort.cases[0])
    print_markdown([difference(trained[2], scan, device, precision) for precision in ("32-true", "auto")])


if __name__ == "__main__":
    main()
