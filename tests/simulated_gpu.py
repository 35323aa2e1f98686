"""A GPU that is not there: its tensors say that they lie on it, compute on the CPU, and refuse what a GPU's refuse.

It takes a hook of torch for devices that are written in Python. There is no autocast, no ``inference_mode`` and no
Lightning trainer on it, and no way back: a program that calls `plug_in` keeps it.
"""

from collections import Counter
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

NAME = "simulated"
aten = torch.ops.aten
CALLS: Counter = Counter()  # of each operation; a GPU takes some microseconds for each, however small it is
# These move values between devices, or take indices from another one.
BRIDGES = {aten.copy_.default, aten._to_copy.default, aten.detach.default, aten._local_scalar_dense.default}
BRIDGES |= {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class OnGPU(torch.Tensor):
    """A tensor on the simulated GPU; `values` are on the CPU."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "OnGPU":
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        tensor = torch.Tensor._make_wrapper_subclass(cls, values.size(), device=torch.device(NAME, 0), **layout)
        tensor.values = values.detach()
        return tensor

    def __repr__(self) -> str:
        return f"OnGPU{tuple(self.shape)}"

    def __array__(self, *_: Any, **__: Any):
        raise TypeError("a tensor on the GPU cannot become an array; use .cpu() first")

    numpy = __array__

    def tolist(self):
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Everywhere(TorchDispatchMode):
    """Sees the calls that take no tensor of the GPU, too: those that make one there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args: tuple, kwargs: dict):
    """One operation: refused where a GPU would, computed on the CPU, its result put where a GPU would have it."""
    CALLS[func] += 1
    leaves, tree = tree_flatten((args, kwargs))
    there = [leaf for leaf in leaves if isinstance(leaf, OnGPU)]
    here = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, OnGPU)]
    if there and any(tensor.ndim for tensor in here) and func not in BRIDGES:
        raise RuntimeError(f"tensors are on the GPU and on the CPU in {func}")
    if there and func is aten.index.Tensor and not isinstance(args[0], OnGPU):
        raise RuntimeError("a tensor on the CPU is indexed by one on the GPU")
    with torch.no_grad():
        args_here, kwargs_here = tree_unflatten([_here(leaf) for leaf in leaves], tree)
        result = func(*args_here, **kwargs_here)
    if func is aten.copy_.default or (func._schema.is_mutable and func._schema.name.endswith("_") and args):
        return args[0]
    wanted = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    to_gpu = bool(there) if wanted is None else wanted.type == NAME
    own = {id(tensor.values): tensor for tensor in there}

    def placed(leaf):
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, OnGPU):
            return leaf
        if not to_gpu:
            return leaf.clone() if id(leaf) in own else leaf
        return own[id(leaf)] if id(leaf) in own else OnGPU(leaf)

    return tree_map(placed, result)


def _here(leaf):
    if isinstance(leaf, OnGPU):
        return leaf.values
    return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == NAME else leaf


class _Backend(backend_registration._DummyBackendModule):
    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def plug_in() -> torch.device:
    """The simulated GPU, from here on."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
    torch._C._set_only_lift_cpu_tensors(True)  # or torch.tensor(..., device=...) would be made nowhere
    torch.inference_mode = torch.no_grad
    Everywhere().__enter__()
    return torch.device(NAME, 0)
