"""What scale costs: the simulation of a loader, and the arithmetic, against what one can work out by hand."""

from argparse import Namespace

import numpy as np
import pytest

from benchmarks.loader import simulate
from benchmarks.scale import epoch_s, waiting, workers_to_keep_up


def test_slow_device_waits_for_the_first_batch_alone():
    epoch = simulate(np.full(100, 0.5), step_s=1.0, workers=2)
    assert epoch.total_s == pytest.approx(0.5 + 100 * 1.0) and epoch.waiting == pytest.approx(0.5 / 100.5)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_fast_device_goes_at_the_pace_of_all_workers(workers):
    epoch = simulate(np.full(100, 1.0), step_s=0.01, workers=workers)
    assert epoch.total_s == pytest.approx(100 / workers + 0.01 * workers)  # the last round's batches are ready together


def test_batches_are_used_in_order_and_ordered_two_ahead():
    """One worker: while the device is in its first step (0.5 to 10.5), two batches are made, and no third."""
    making = np.array([0.5, 0.5, 0.5, 5.0])
    epoch = simulate(making, step_s=10.0, workers=1)
    assert epoch.total_s == pytest.approx(0.5 + 4 * 10)
    # Two workers: the second batch is ready at 1, but is used after the first, at 3; the third follows from worker 0.
    assert simulate(np.array([3.0, 1.0, 3.0]), step_s=0.5, workers=2).total_s == pytest.approx(6.5)


def test_uneven_batches_cost_more_than_even_ones_of_the_same_mean():
    uneven = np.random.default_rng(0).exponential(1.0, 2000)
    even = np.full(2000, uneven.mean())
    assert simulate(uneven, 0.5, 2).total_s > 1.05 * simulate(even, 0.5, 2).total_s
    assert simulate(uneven, 0.5, 16).waiting < 0.01


def test_epoch_takes_as_long_as_its_busiest_part():
    """4 windows a scan: 0.1 s each on a core, 2 s a batch of 8 on this core and 0.1 s on a GPU, 50 MB of the disk."""
    found = {
        "prepare": {"prepared_mb": 30, "slices_mb": 20},
        "load": {"2": {"per_scan": 4, "item_s": [0.05, 0.15], "read_mb": 50}},
        "train 2": {"step_s": 2.0, "batch": 8},
    }
    args = Namespace(gpu_speedup=20, cores_per_gpu=4, disk_mb_s=1000, ram_gb=3)
    assert epoch_s("2", 100, 2, found, args) == pytest.approx({"GPU": 2.5, "CPU": 5.0, "disk": 20.0})
    assert epoch_s("2", 100, 16, found, args)["disk"] == pytest.approx(10.0)  # two machines, two disks
    assert epoch_s("2", 99, 2, found, args)["disk"] == 0  # 2.97 GB stay in memory
    assert workers_to_keep_up("2", found, args) == pytest.approx(8.0)
    assert waiting("2", 4, found, args) == pytest.approx(0.5, abs=0.05) and waiting("2", 12, found, args) < 0.01
