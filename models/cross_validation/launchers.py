"""Where the folds of a cross-validation run: one after the other in this process, or as tasks of a Ray cluster (Moritz
et al., 2018, https://docs.ray.io). Its nodes share a file system, so that a fold whose worker was lost goes on from its
checkpoints on another one."""

import os
import pickle
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from utils.errors import UserError

RETRIES = 3  # of a fold whose worker is lost; Ray's own default
Node = tuple[int, int]  # its CPUs and GPUs
ADDRESS = "RAY_ADDRESS"  # Ray's own variable: where the cluster is; without it one is started on this machine
# Runs ``work(number)`` for the number of each fold. On another machine, `needed` are the paths that must be there.
Launch = Callable[[Callable[[int], None], Sequence[int], Sequence[Path]], None]


def choose_launcher(name: str, devices: Sequence[int]) -> Launch:
    """What ``--launcher`` names; a fold trains on as many GPUs as `devices`, where the cluster has any.

    Refuses Ray where it is not installed, its cluster does not answer, no node has that many GPUs, or they are not
    counted from 0.
    """
    if name == "sequential":
        return in_turn
    _connect(os.environ.get(ADDRESS))
    if not (nodes := _nodes()):
        raise UserError(f"{ADDRESS}: no node of the cluster has a CPU; add one")
    most, wanted = max(gpus for _, gpus in nodes), len(devices)
    if most and wanted > most:
        raise UserError(f"--devices names {wanted} GPUs: no node of the cluster has more than {most}; give fewer")
    if most and sorted(devices) != list(range(wanted)):
        raise UserError(f"--devices {devices[0]}: Ray counts the GPUs of a fold from 0; give 0 to {wanted - 1}")
    return partial(on_ray, nodes=nodes, gpus=wanted if most else 0)


def in_turn(work: Callable[[int], None], numbers: Sequence[int], needed: Sequence[Path]) -> None:
    for number in numbers:
        work(number)


def on_ray(
    work: Callable[[int], None], numbers: Sequence[int], needed: Sequence[Path], nodes: list[Node], gpus: int
) -> None:
    """Run each fold as a task of the cluster that this process is connected to; leaves the cluster at the end.

    Raises a `UserError` where a fold met one, a node does not see a path, or a fold was lost too often.
    """
    import ray

    cpus = cpus_each(nodes, len(numbers), gpus)
    print(f"Ray runs {len(numbers)} folds, each with CPUs: {cpus}, GPUs: {gpus}", flush=True)
    # By value: a node without the project can then still say so.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_run_on_node)
    paths = [str(path.absolute()) for path in (Path(__file__).parents[2], Path.cwd(), *needed)]
    common = ray.put(ray.cloudpickle.dumps(work)), paths, sys.argv
    running = {task.options(name=f"fold-{number}").remote(number, *common): number for number in numbers}
    try:
        while running:
            (ended,), _ = ray.wait(list(running))
            number = running.pop(ended)
            if complaint := ray.get(ended):
                raise UserError(complaint)
            print(f"Fold {number} has ended", flush=True)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError):
        raise UserError(
            f"fold {number} has lost its worker {RETRIES + 1} times, most likely for memory; give the same command "
            "again with smaller batches, or on larger nodes"
        ) from None
    finally:
        ray.shutdown()  # which ends the tasks that still run


def _run_on_node(number: int, work: bytes, needed: list[str], command: list[str]) -> str | None:
    """Run a fold where Ray has put it, as if it had been started there; returns the message of a `UserError`."""
    if missing := [path for path in needed if not Path(path).exists()]:
        return f"node {socket.gethostname()} does not see {missing[0]}; Ray's nodes must share a file system"
    root, folder = needed[:2]
    os.chdir(folder)
    sys.argv = command  # a training notes the command that made it
    sys.path[:0] = [] if root in sys.path else [root]

    from utils.errors import UserError
    from utils.progress import forget_launcher

    forget_launcher()  # Ray itself is often started by srun
    try:
        return pickle.loads(work)(number)
    except UserError as error:
        return str(error)


def cpus_each(nodes: list[Node], folds: int, gpus: int) -> int:
    """The most CPUs that each fold may have while as many run at once as there is room for, each with that many GPUs
    (which some node has, or 0)."""

    def at_once(cpus: int) -> int:
        return sum(min(c // cpus, g // gpus if gpus else folds) for c, g in nodes)

    wanted = min(folds, at_once(1))
    return max(cpus for cpus in range(1, max(c for c, _ in nodes) + 1) if at_once(cpus) >= wanted)


def _connect(address: str | None) -> None:
    """Join the cluster at an address; None starts one of this machine, which ends with this process."""
    if not find_spec("ray"):
        raise UserError("--launcher ray: Ray is not installed; pip install -r requirements-ray.txt")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send statistics; read when Ray starts
    import ray

    if address not in (None, "auto"):
        _require_answer(address)
    starts = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(address or "local", logging_level="error", **starts)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"{ADDRESS} {address or '(none)'}: {str(error).strip().splitlines()[0]}") from None


def _require_answer(address: str) -> None:
    """Refuse an address at which nothing listens: Ray itself would wait, deaf to all but SIGKILL."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{ADDRESS} {address} is no HOST:PORT, such as 10.0.0.1:6379; correct it, or set auto")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{ADDRESS} {address} does not answer ({error}); start it there with ray start --head, or correct it"
        ) from None


def _nodes() -> list[Node]:
    """The nodes that take tasks."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(int(node["CPU"]), int(node.get("GPU", 0))) for node in alive if node.get("CPU", 0) >= 1]
