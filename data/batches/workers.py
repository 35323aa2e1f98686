"""Room for the workers of a loader: what they hand over lies in shared memory, each tensor as an open file."""

import resource
import shutil
import signal
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from utils.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
LEAST_FILES, LEAST_BYTES = 256, 32 * 2**20
# Of workers. On several devices it would be that of their processes, by which each worker imports all libraries anew.
START_METHOD = "fork" if sys.platform == "linux" else None
AHEAD = 2  # batches that each worker makes ahead; torch's default


def require_room(num_workers: int, batch_bytes: int = 0) -> None:
    """Refuse workers without room, for which torch would wait for ever; allows this process all files that it may open.

    `batch_bytes` is the size of a batch.
    """
    if not num_workers:
        return
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < LEAST_FILES:
        raise UserError(
            f"--num_workers {num_workers}: a process may open {files} files, and loader workers need {LEAST_FILES}; "
            "raise the limit (ulimit -n 4096), or give --num_workers 0"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    needed = max(LEAST_BYTES, AHEAD * num_workers * batch_bytes)
    if SHARED_MEMORY.exists() and (free := shutil.disk_usage(SHARED_MEMORY).free) < needed:
        raise UserError(
            f"--num_workers {num_workers}: {SHARED_MEMORY} has {free / 1e6:.0f} MB free, and loader workers need "
            f"{needed / 1e6:.0f} MB; enlarge it (docker run --shm-size=1g, or --ipc=host), or give --num_workers 0"
        )


def end_with_parent(worker: int) -> None:
    """Let a worker end as soon as the process that it loads for; torch would have it look every five seconds."""
    _prctl_pr_set_pdeathsig(signal.SIGKILL)


def size_of_batch(items: Dataset, sampler: Iterable, batch_size: int) -> int:
    """Bytes of a batch, if all items are as large as the first."""
    leaves = [leaf for key in islice(sampler, 1) for leaf in tree_leaves(items[key])]
    return batch_size * sum(leaf.nbytes for leaf in leaves)
