"""The program as an ONNX file, with weights in float32, float16 or int8."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.export import ExportedProgram

from finelens.errors import UserError
from finelens.exporting.program import OUTPUT, input_names

Weights = Literal["float32", "float16", "int8"]
# Smaller tensors stay as they are.
LARGE = 1024
LARGEST_INT8 = 127


def need_packages() -> None:
    """Check, before the work, for what writes and runs such a file.

    Raises:
        UserError: The packages of the extra ``onnx`` are not installed.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(name) is None:
            raise UserError(f"--to onnx needs {name}: pip install 'finelens[onnx]'")


def write_onnx(program: ExportedProgram, path: Path, weights: Weights, towers: int) -> None:
    """Write one file; other types than float32 are those of the stored weights, computed is float32.

    float16 and int8 (symmetric, a scale for each row of the first axis) are undone by a node behind each large weight.

    Args:
        program: What is written.
        path: The file.
        weights: Type of the stored weights.
        towers: Image towers, each with an input of its own.

    Raises:
        UserError: The exporter cannot express the program.
    """
    import onnx

    try:
        found = torch.onnx.export(program, dynamo=True, input_names=input_names(towers), output_names=[OUTPUT], verbose=False)
    except Exception as error:  # operators without an ONNX counterpart end in types of the exporter's own
        raise UserError(f"the exporter to ONNX cannot express this model: {str(error).strip().splitlines()[0]}") from error
    assert found is not None
    model = found.model_proto
    if weights != "float32":
        _store_small(model, onnx, weights)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _store_small(model: Any, onnx: Any, weights: Weights) -> None:
    graph, kept, added, nodes = model.graph, [], [], []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < LARGE or (weights == "int8" and values.ndim < 2):
            kept.append(tensor)
            continue
        small = f"{tensor.name}.{weights}"
        if weights == "float16":
            added.append(onnx.numpy_helper.from_array(values.astype(np.float16), small))
            nodes.append(onnx.helper.make_node("Cast", [small], [tensor.name], to=onnx.TensorProto.FLOAT))
            continue
        scale = np.abs(values).max(axis=tuple(range(1, values.ndim))) / LARGEST_INT8
        scale = np.where(scale > 0, scale, 1).astype(np.float32)  # (rows,)
        codes = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
        added += [onnx.numpy_helper.from_array(codes, small), onnx.numpy_helper.from_array(scale, f"{small}.scale")]
        nodes.append(onnx.helper.make_node("DequantizeLinear", [small, f"{small}.scale"], [tensor.name], axis=0))
    rest = list(graph.node)
    del graph.initializer[:]
    graph.initializer.extend([*kept, *added])
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
