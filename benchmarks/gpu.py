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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytorch_lightning as pl
import torch
from common import dice, opened, print_markdown
from volume import GRID, REPEATS, ROI_SIZE, draw_head, fastest, two_stages

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
TRANSFORMS = ["flip", "affine", "contrast"]


@dataclass(frozen=True)
class Size:
    """What is measured on.

    spacing_mm: of the heads.
    window, image_size: of the networks.
    batch_sizes: of both stages.
    steps: of training that are timed; as many come before, untimed.
    """

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


MEASURES = {
    "plain": Measure(),
    "channels last": Measure(channels_last=True),
    "half precision": Measure("auto", True),
    "workers ahead": Measure("auto", True, workers=True),
    "compiled": Measure("auto", True, compiled=True, workers=True),
}


# --- training ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """What is trained.

    build: its network, untrained.
    data: from a number of workers to its batches.
    layout: channels last.
    """

    build: Callable[[], pl.LightningModule]
    data: Callable[[int], pl.LightningDataModule]
    layout: torch.memory_format
    batch_size: int


def stages(size: Size, cohort: Cohort) -> dict[str, Stage]:
    scans, (of_slices, of_windows) = ScanSlices(cohort.cases, cohort), size.batch_sizes
    regions = {case.name: [whole_volume(size.grid.shape)] for case in cohort.cases}

    def slices(workers: int) -> RPNDataModule:
        return RPNDataModule(scans, scans, Loading(batch_size=of_slices, num_workers=workers), TRANSFORMS)

    def windows(workers: int) -> SegmentationDataModule:
        loading, cases = Loading(batch_size=of_windows, num_workers=workers), cohort.cases
        return SegmentationDataModule(cases, cases, regions, cohort, size.window, loading, TRANSFORMS)

    build_rpn = partial(RPN, image_size=size.image_size, slice_side=min(size.grid.shape[1:]))
    build_segmenter = partial(StrokeFormer, roi_size=size.window)
    return {
        "stage 1": Stage(build_rpn, slices, torch.channels_last, of_slices),
        "stage 2": Stage(build_segmenter, windows, torch.channels_last_3d, of_windows),
    }


def train(stage: Stage, measure: Measure, size: Size, device: torch.device) -> tuple[pl.LightningModule, dict]:
    """A network after its steps, and what they took."""
    use_precision(measure.precision)
    torch.manual_seed(0)
    model = stage.build().to(device).train()
    model.log_dict = lambda *args, **kwargs: None  # without a trainer there is no log
    if measure.channels_last:
        model = model.to(memory_format=stage.layout)
    if measure.compiled:
        compile_network(model)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    data = stage.data(size.workers if measure.workers else 0)
    data.trainer, batches = SimpleNamespace(training=True), endless(data)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    waited, started = 0.0, 0.0
    for index in range(2 * size.steps):
        if index == size.steps:  # by now the libraries have chosen their kernels
            finish(device)
            waited, started = 0.0, time.perf_counter()
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        optimiser.zero_grad(set_to_none=True)
        batch = data.on_after_batch_transfer(pl.utilities.move_data_to_device(batch, device), 0)
        model.training_step(batch, index).backward()
        optimiser.step()
        finish(device)  # so that waiting is waiting for data
    seconds = time.perf_counter() - started
    row = {"samples/s": f"{size.steps * stage.batch_size / seconds:.1f}", "waits for data": f"{waited / seconds:.0%}"}
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    return model, {"precision": precision_on(device), **row, "GiB of the GPU": f"{memory:.2f}"}


def endless(data: pl.LightningDataModule) -> Iterator:
    """Batch after batch, epoch after epoch; full ones alone, so that samples are easily counted."""
    loader = data.train_dataloader()
    full = len(loader.sampler) // loader.batch_size
    if not full:
        raise SystemExit(f"an epoch has fewer than the {loader.batch_size} samples of a batch; draw more heads")
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        yield from islice(loader, full)


def finish(device: torch.device) -> None:
    """Wait for the GPU to have done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


def train_all(
    stages: dict[str, Stage], measures: dict[str, Measure], size: Size, device: torch.device
) -> tuple[dict, list]:
    """The last network of each stage, and a row of each training."""
    trained, rows = {}, []
    for name, stage in stages.items():
        for what, measure in measures.items():
            trained[name], row = train(stage, measure, size, device)
            rows.append({"training": name, "measure": what, **row})
            torch._dynamo.reset()
    return trained, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small heads and few steps: whether the program runs")
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.exit(2, "benchmarks/gpu.py: error: there is no GPU here; --device cpu --tiny shows that it runs\n")
    device, size, out_dir = torch.device(args.device), SIZES[args.tiny], args.out_dir.absolute()
    draw_head(out_dir, size.spacing_mm, n_subjects=2)
    cohort = opened(out_dir / "cohort", size.grid, [out_dir / "cohort/TrueBrains"])
    # To compile takes minutes on a CPU.
    measures = {what: measure for what, measure in MEASURES.items() if not (args.tiny and measure.compiled)}
    trained, rows = train_all(stages(size, cohort), measures, size, device)
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU")
    print_markdown(rows)
    use_precision("auto")
    rpn, model = trained["stage 1"].eval(), trained["stage 2"].eval()
    if not args.tiny:  # its seconds are those of the default grid
        program = two_stages(rpn, model)
        seconds = fastest(cohort.cases[0], program, REPEATS["ours"], out_dir / "predicted.nii.gz")
        print_markdown([{f"{step}, s": f"{s:.2f}" for step, s in seconds.items()}])
    scan = cohort.prepare(cohort.cases[0])
    print_markdown([difference(model, scan, device, precision) for precision in ("32-true", "auto")])


if __name__ == "__main__":
    main()
