"""The weights of a model folder: in half precision, and as a checkpoint, from which a training can start."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from data.scans.grid import ORIENTATION
from models.export.exported import NETWORKS_OF, read_model

LARGEST_HALF = float(np.finfo(np.float16).max)
HALF = "_half"  # behind the name of a weight that is stored so


def halve_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with its weights stored as float16; they are cast to float32, in which it computes, on loading.

    Vectors, which take little room, and weights beyond float16's range stay as they are.
    """
    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.ndim < 2 or np.abs(values).max() > LARGEST_HALF:
            continue
        name, stored = weight.name, f"{weight.name}{HALF}"
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    model.graph.ClearField("node")
    model.graph.node.extend([*casts, *nodes])
    return model


def exported_checkpoint(folder: Path, kind: str) -> dict:
    """What a checkpoint of the class `kind`, ``RPN`` or ``StrokeFormer``, holds of a network, made of a model folder.

    Raises:
        UserError: as `read_model`.
    """
    model = read_model(folder)
    parameters = model.hyper_parameters[kind]  # JSON made lists of tuples
    return {
        "model": kind,
        "grid": {**asdict(model.grid), "orientation": ORIENTATION},
        "contrast": model.contrast,
        "hyper_parameters": {name: tuple(v) if isinstance(v, list) else v for name, v in parameters.items()},
        "state_dict": {name: weight for file in NETWORKS_OF[kind] for name, weight in _weights(folder / file).items()},
    }


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of an ONNX file by their names, float32."""
    stored = onnx.load(path, load_external_data=False).graph.initializer
    values = {each.name.removesuffix(HALF): numpy_helper.to_array(each).astype(np.float32) for each in stored}
    return {name: torch.from_numpy(value) for name, value in values.items()}
