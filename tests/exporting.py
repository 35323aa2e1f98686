"""Exports two networks in both precisions, of one tracing, which takes 15 s."""

from pathlib import Path

import onnx
import pytest

from models.export import __main__ as export
from models.export import networks


def export_twice(rpn: Path, seg: Path, full: Path, half: Path) -> None:
    """Export in float32 and in float16."""
    traced = {}

    def trace_once(network, inputs, names, dynamic, trace=networks.to_onnx):
        if names[0] not in traced:
            traced[names[0]] = trace(network, inputs, names, dynamic)
        copy = onnx.ModelProto()
        copy.CopyFrom(traced[names[0]])
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.precision.has_bfloat16", lambda device: False)
        patch.setattr(networks, "to_onnx", trace_once)
        for folder, flags in ((full, []), (half, ["--fp16"])):
            given = ["--rpn_ckpt_path", rpn, "--ckpt_path", seg, "--out_dir", folder, *flags]
            export.main(export.parse_args(list(map(str, given))))
