"""PyTorch's DataLoader as a queue: when each batch is ready, and how long the consumer waits for it."""

from dataclasses import dataclass

import numpy as np

PREFETCH = 2  # batches that a worker makes ahead: PyTorch's default


@dataclass(frozen=True)
class Epoch:
    """total_s: from the start to the end of the last step; waiting: the share of it without a step, in [0, 1]."""

    total_s: float
    waiting: float


def simulate(making_s: np.ndarray, step_s: float, workers: int, prefetch: int = PREFETCH) -> Epoch:
    """An epoch whose batches are made by `workers` processes, each on a core of its own, and used by one device.

    As in PyTorch (`torch.utils.data.dataloader`), batch i is made by worker i mod `workers` and used in order. Up to
    `prefetch` batches a worker are ordered ahead; the next one is ordered when one is taken.

    Args:
        making_s: (N,) seconds to make each batch; `step_s`, the seconds that the device takes for each.
    """
    ready, taken = np.zeros(len(making_s)), np.zeros(len(making_s))
    device_free = 0.0
    for i, seconds in enumerate(making_s):
        worker_free = ready[i - workers] if i >= workers else 0.0
        ordered = taken[i - workers * prefetch] if i >= workers * prefetch else 0.0
        ready[i] = max(worker_free, ordered) + seconds
        taken[i] = max(device_free, ready[i])
        device_free = taken[i] + step_s
    return Epoch(float(device_free), float(1 - len(making_s) * step_s / device_free))
