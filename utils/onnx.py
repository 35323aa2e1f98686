"""Networks of ONNX files, run on the CPU by onnxruntime."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils.errors import UserError

Network = Callable[..., list[np.ndarray]]


def open_network(path: Path, num_threads: int) -> Network:
    """A network as a function of its inputs, in their order, that returns all outputs; 0 threads for one a core.

    Raises:
        UserError: onnxruntime is missing, or cannot read the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("onnxruntime is missing; pip install -r requirements-runner.txt") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen types for a file that it cannot read
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} cannot be read by onnxruntime {onnxruntime.__version__} ({reason})") from None
    names = [given.name for given in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))
