"""The processes of a training: one a device, of this machine or of several.

Only the training itself runs in several processes; all that comes before and after it stays in the process of the
script. So a script reads as for one device, and a cross-validation trains each network in processes of its own.

On several machines ("nodes") the same command is given on each. The first node does the work and hands each training
over to the others, which do nothing else. They must see the same files.
"""

import atexit
import os
import pickle
import signal
import socket
import time
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import multiprocessing
from torch.distributed import DistError, TCPStore
from torch.multiprocessing import ProcessExitedException

from utils.errors import UserError

PATIENCE = timedelta(minutes=10)  # for another node to turn up
A_TRAINING = timedelta(days=365)  # and for the first one to hand over the next training
FAREWELL_S = 10  # that the first node waits for the others when it has ended
END = b"end"  # in place of a training


def devices_of(args: Namespace) -> int:
    """How many devices of this machine a training uses: GPUs or, without any, processes on the CPU.

    Several of ``--devices`` mean several processes on a CPU with ``--strategy ddp`` alone: there they only share the
    cores that one process uses as well.
    """
    return len(args.devices) if torch.cuda.is_available() or args.strategy == "ddp" else 1


def processes_of(args: Namespace) -> int:
    """The processes of a training on all nodes."""
    return devices_of(args) * args.num_nodes


def require_devices(args: Namespace, **batch_sizes: int) -> None:
    """Refuse devices that are not there, and batches that cannot be split over them.

    Args:
        batch_sizes: the batch size of each training, by its argument.
    """
    gpus, processes = torch.cuda.device_count(), processes_of(args)
    if gpus and (beyond := [device for device in args.devices if device >= gpus]):
        raise UserError(f"--devices {beyond[0]}: this machine has {gpus} GPUs, from 0 to {gpus - 1}")
    for name, size in batch_sizes.items():
        if size % processes:
            raise UserError(
                f"--{name} {size} cannot be split over {processes} processes; give a multiple of {processes}"
            )


# --- on this machine -----------------------------------------------------------------------------------


def launch(job: Callable[[], None], args: Namespace) -> None:
    """Do a training: in this process or, for several devices, in as many new ones that do it together.

    Args:
        job: can be pickled, and makes its trainer by `models.training.tracking.build_trainer`.

    Raises:
        UserError: as `job`, or a process was killed.
    """
    if processes_of(args) == 1:
        return job()
    # Pickled here: what multiprocessing pickles itself leaves tensors where all processes would learn in the same ones.
    packed = pickle.dumps(job)
    if args.num_nodes == 1:
        return _run_processes(packed, devices_of(args), _free_port())
    _exchange.leave(packed)
    _run_processes(packed, devices_of(args), _port() + 1)


def _run_processes(packed: bytes, devices: int, port: int) -> None:
    errors = multiprocessing.get_context("spawn").SimpleQueue()
    place = {"MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"), "MASTER_PORT": str(port)}
    try:
        # When one of them ends with an error, this ends the others, which would wait for it for ever.
        multiprocessing.start_processes(_run_process, (packed, place, errors), devices, start_method="spawn")
    except ProcessExitedException as error:
        if not errors.empty():
            raise errors.get() from None
        if error.signal_name != signal.SIGKILL.name:
            raise
        raise UserError("a process of the training was killed, most likely for memory; lower --batch_size") from error


def _run_process(number: int, packed: bytes, place: dict[str, str], errors) -> None:
    """One process of a training; a mistake of the user or a full disk is handed to the process that waits for it."""
    os.environ.update(place, LOCAL_RANK=str(number), NODE_RANK=str(node_rank()))
    try:
        pickle.loads(packed)()
    except (UserError, OSError) as error:
        errors.put(error)
        raise SystemExit(2) from None
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- on several machines -------------------------------------------------------------------------------


def node_rank() -> int:
    """The number of this machine among those of ``--num_nodes``, as torchrun or SLURM tell it."""
    return int(os.environ.get("NODE_RANK") or os.environ.get("SLURM_NODEID") or 0)


def _port() -> int:
    return int(os.environ["MASTER_PORT"])


class Exchange:
    """Where the first node leaves trainings for the others, which meet there first.

    Raises:
        UserError: not all of them turn up.
    """

    def __init__(self, nodes: int) -> None:
        self.others, self.taken = nodes - 1, 0
        place = f"{os.environ['MASTER_ADDR']}:{_port()}"
        try:
            self.store = TCPStore(os.environ["MASTER_ADDR"], _port(), nodes, node_rank() == 0, PATIENCE)
        except DistError as error:
            raise UserError(f"the {nodes} nodes do not meet at {place} ; give the command on each") from error
        self.store.set_timeout(A_TRAINING)

    def leave(self, training: bytes) -> None:
        self.store.set(str(self.taken), training)
        self.taken += 1

    def take(self) -> bytes | None:
        """The next training; None when there is none to come."""
        try:
            training = self.store.get(str(self.taken))
        except DistError as error:
            raise UserError("the first node has gone before its trainings were done; see what it says") from error
        self.taken += 1
        if training == END:
            self.store.add("gone", 1)
            return None
        return training

    def close(self) -> None:
        """Let the other nodes go; the store is kept until they know."""
        self.leave(END)
        until = time.monotonic() + FAREWELL_S
        while self.store.add("gone", 0) < self.others and time.monotonic() < until:
            time.sleep(0.05)


_exchange: Exchange | None = None


def follow(args: Namespace) -> bool:
    """On all nodes but the first: take part in the trainings that the first hands over, until it has no more.

    Returns:
        Whether this is such a node; its script has nothing left to do.
    """
    global _exchange
    if args.num_nodes == 1:
        return False
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise UserError(
            f"--num_nodes {args.num_nodes} needs {' and '.join(missing)} in the environment of each node: where the "
            "first node is, and a free port there; NODE_RANK or SLURM numbers the nodes"
        )
    _exchange = Exchange(args.num_nodes)
    if node_rank() == 0:
        atexit.register(_exchange.close)
        return False
    while training := _exchange.take():
        _run_processes(training, devices_of(args), _port() + 1)
    return True
