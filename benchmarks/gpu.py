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
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.export import dice
from benchmarks.peers import print_markdown
from benchmarks.proposals import run
from benchmarks.volume import regions_of, run_once, timed
from data.batches.cutting import cut_cohort
from data.batches.datamodules import RPNDataModule, SegmentationDataModule
from data.scans.brain import with_brains
from data.scans.cohort import pair_cases
from data.scans.grid import Grid
from data.scans.prepared import PreparedScan, cached_scan
from models.precision import precision_on, use_precision
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer
from models.training.fit import compile_network
from utils.regions.region import Region, whole_volume

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
    False: Size(Grid((1, 189, 192, 192), spacing_mm=(1.0,) * 3), 1, (64, 64, 64), 192, (32, 8), 30, 8),
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


def stages(size: Size, out_dir: Path, cases: list) -> dict[str, tuple[Callable, Callable, torch.memory_format, int]]:
    """Of each stage: how to build its network, how to build its data with some workers, its layout and batch size."""
    prepare = lambda case: cached_scan(case, size.grid, out_dir / "cache")  # noqa: E731
    table = cut_cohort(cases, size.grid, prepare, out_dir / "slices")
    regions = {case.name: [whole_volume(size.grid.shape)] for case in cases}
    batch_sizes = size.batch_sizes

    def windows(workers: int) -> SegmentationDataModule:
        where = regions, size.grid, size.window, out_dir / "cache"
        return SegmentationDataModule(cases, cases, *where, batch_sizes[1], workers, TRANSFORMS)

    return {
        "stage 1": (
            lambda: RPN(image_size=size.image_size, slice_side=min(size.grid.shape[1:]), evidence_growth=5.0),
            lambda workers: RPNDataModule(table, table, batch_sizes[0], workers, ["flip", "contrast"]),
            torch.channels_last,
            batch_sizes[0],
        ),
        "stage 2": (lambda: StrokeFormer(roi_size=size.window), windows, torch.channels_last_3d, batch_sizes[1]),
    }


def train(stage: tuple, measure: Measure, size: Size, device: torch.device) -> tuple[pl.LightningModule, dict]:
    """A network after its steps, and what they took."""
    build, data, layout, batch_size = stage
    use_precision(measure.precision)
    torch.manual_seed(0)
    model = build().to(device).train()
    model.log_dict = lambda *args, **kwargs: None  # without a trainer there is no log
    if measure.channels_last:
        model = model.to(memory_format=layout)
    if measure.compiled:
        compile_network(model)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    batches = endless(data(size.workers if measure.workers else 0))
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
        model.training_step(pl.utilities.move_data_to_device(batch, device), index).backward()
        optimiser.step()
        finish(device)  # so that waiting is waiting for data
    seconds = time.perf_counter() - started
    row = {"samples/s": f"{size.steps * batch_size / seconds:.1f}", "waits for data": f"{waited / seconds:.0%}"}
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    return model, {"precision": precision_on(device), **row, "GiB of the GPU": f"{memory:.2f}"}


def endless(data: pl.LightningDataModule) -> Iterator:
    """Batch after batch, epoch after epoch; full ones alone, so that samples are easily counted."""
    loader, epoch = data.train_dataloader(), 0
    whole = loader.batch_sampler.batch_size
    if len(loader.batch_sampler.sampler) < whole:
        raise SystemExit(f"an epoch has fewer than the {whole} samples of a batch; draw more heads")
    while True:
        loader.batch_sampler.sampler.set_epoch(epoch)
        for index, batch in enumerate(loader):
            if loader.batch_sampler.share(index).whole == whole:
                yield batch
        epoch += 1


def finish(device: torch.device) -> None:
    """Wait for the GPU to have done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- a volume ------------------------------------------------------------------------------------------


def program(rpn: RPN, model: StrokeFormer, regions: Callable[[PreparedScan], list[Region]]) -> Callable:
    def predict(scan: PreparedScan, seconds: dict) -> np.ndarray:
        timed("stage 1", seconds, lambda: rpn.propose(scan, rpn.detect_volume(scan), model.window, 0.01))
        return timed("stage 2", seconds, lambda: model.segment(scan, regions(scan), batch_size=8))

    return predict


def apart(model: StrokeFormer, scan: PreparedScan, device: torch.device, precision: str) -> dict[str, str]:
    """How far a network's predictions of a scan on a device lie from those on the CPU in 32 bit."""
    on_cpu, on_device = (copy.deepcopy(model).to(where) for where in ("cpu", device))
    use_precision("32-true")
    expected = on_cpu.segment(scan, None)[1]
    use_precision(precision)
    found = on_device.segment(scan, None)[1]
    dices = [dice(probabilities > 0.5, scan.mask) for probabilities in (expected, found)]
    difference = abs(dices[0] - dices[1])
    return {
        "precision": precision_on(device),
        "Dice on the CPU": f"{dices[0]:.4f}",
        "difference": f"{difference:.1e} ({'the same' if difference < SAME else 'NOT the same'})",
        "largest of a probability": f"{np.abs(expected - found).max():.1e}",
    }


# --- all of it -----------------------------------------------------------------------------------------


def draw(out_dir: Path, size: Size) -> list:
    cohort = out_dir / "cohort"
    if not (cohort / "Scans").exists():
        heads = ["--n_subjects", 2, "--healthy_fraction", 0, "--spacing", size.spacing_mm, "--ext", ".nii.gz"]
        run("-m", "data.phantom", "--out_dir", cohort, *heads)
    return with_brains(pair_cases([cohort / "Scans"], [cohort / "Masks"]), [cohort / "TrueBrains"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small heads and few steps: whether the program runs")
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.exit(2, "benchmarks/gpu.py: error: there is no GPU here; --device cpu --tiny shows that it runs\n")
    device, size, out_dir = torch.device(args.device), SIZES[args.tiny], args.out_dir.absolute()
    cases, trained, rows = draw(out_dir, size), {}, []
    for name, stage in stages(size, out_dir, cases).items():
        for measure, settings in MEASURES.items():
            if args.tiny and settings.compiled:  # takes minutes on a CPU
                continue
            trained[name], row = train(stage, settings, size, device)
            rows.append({"training": name, "measure": measure, **row})
            torch._dynamo.reset()
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU")
    print_markdown(rows)
    use_precision("auto")
    rpn, model = trained["stage 1"].eval(), trained["stage 2"].eval()
    scan = cached_scan(cases[0], size.grid, out_dir / "cache")
    if not args.tiny:  # its seconds are those of the default grid
        runs = [run_once(cases[0], program(rpn, model, regions_of), out_dir / "predicted.nii.gz") for _ in range(3)]
        best = min(runs, key=lambda seconds: sum(seconds.values()))
        print_markdown([{f"{n}, s": f"{s:.2f}" for n, s in {**best, "all": sum(best.values())}.items()}])
    print_markdown([apart(model, scan, device, precision) for precision in ("32-true", "auto")])


if __name__ == "__main__":
    main()
