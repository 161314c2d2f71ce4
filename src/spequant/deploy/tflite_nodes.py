"""A .tflite model, node by node: tensors with their scales, constants, operators. What the nodes mean: the writers of
`formats/tflite.py`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spequant.deploy.bits import pack_bits
from spequant.extras import needs

NODE_OPTIONS = {
    "ABS": "AbsOptions",
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "CAST": "CastOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "DIV": "DivOptions",
    "EXP": "ExpOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "GATHER": "GatherOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "LOG": None,
    "LOGISTIC": None,
    "MAXIMUM": "MaximumMinimumOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MUL": "MulOptions",
    "PAD": "PadOptions",
    "PADV2": "PadV2Options",
    "PRELU": None,
    "QUANTIZE": "QuantizeOptions",
    "REDUCE_MAX": "ReducerOptions",
    "RELU": None,
    "RELU6": None,
    "RESHAPE": "ReshapeOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
    "ROUND": None,
    "SQRT": None,
    "STRIDED_SLICE": "StridedSliceOptions",
    "SUB": "SubOptions",
    "SUM": "ReducerOptions",
    "TANH": None,
    "TRANSPOSE": "TransposeOptions",
}
"""{operator: its table of options in the schema}"""
TENSOR_TYPES = {
    np.dtype(np.float32): "FLOAT32",
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.int8): "INT8",
    np.dtype(np.int16): "INT16",
    np.dtype(np.int32): "INT32",
    np.dtype(np.int64): "INT64",
}
FLOAT, INT8, INT16, INT32, UINT8 = (np.dtype(kind) for kind in (np.float32, np.int8, np.int16, np.int32, np.uint8))
IN_INT8 = {"CAST": 1, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 12, "QUANTIZE": 1, "RESHAPE": 1}
"""Version of an operator on int8 with a scale per channel; of others it is 2."""
IN_INT4 = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 6}
"""Version of an operator whose weights have 4 bits."""
OF_TWO_TYPES = {"DEQUANTIZE": 3, "QUANTIZE": 2, "FULLY_CONNECTED": 12, "RESHAPE": 1}
"""Version of an operator on int16."""


FUSING = ("ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MUL", "SUB")
"""Operators that take an activation into them, in both engines."""


def schema() -> Any:
    """The flatbuffer schema of .tflite files. ModuleNotFoundError: the extra `tflite` is not installed."""
    return needs("ai_edge_litert.schema_py_generated", "tflite")


class TfliteGraph:
    """Tensors and operators of one graph. Tensors are numbers; equal constants are stored once."""

    def __init__(self) -> None:
        self.schema = schema()
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [self.schema.BufferT()]  # the first is empty, of all that is computed
        self.operators: list[Any] = []
        self.codes: list[tuple[str, int]] = []
        self.stored: dict[bytes, int] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: np.dtype,
        scale: Any = None,
        zero: int = 0,
        *,
        axis: int = 0,
        data: bytes | None = None,
    ) -> int:
        """A new tensor. scale: of its codes, one number or one per index of `axis`; None: it has none."""
        s, tensor = self.schema, self.schema.TensorT()
        tensor.name, tensor.shape = f"{name}.{len(self.tensors)}", np.asarray(shape, np.int32)
        tensor.type = getattr(s.TensorType, TENSOR_TYPES[kind])
        tensor.buffer = 0 if data is None else self._buffer(data)
        if scale is not None:
            tensor.quantization = s.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            tensor.quantization.zeroPoint = np.full(len(tensor.quantization.scale), zero, np.int64)
            tensor.quantization.quantizedDimension = axis
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(
        self, name: str, value: Any, scale: Any = None, *, zero: int = 0, axis: int = 0, int4: bool = False
    ) -> int:
        """int4: whether numbers of -8 .. 7 are packed, two in a byte, the first in its lower half."""
        array = np.ascontiguousarray(value)
        data = pack_bits((array.reshape(-1) & 15).astype(np.uint8), 4) if int4 else array
        tensor = self.tensor(name, array.shape, array.dtype, scale, zero, axis=axis, data=data.tobytes())
        if int4:
            self.tensors[tensor].type = self.schema.TensorType.INT4
        return tensor

    def node(self, kind: str, inputs: Sequence[int], output: int, **options: Any) -> int:
        """Add an operator; `output`. options: fields of its table in the schema."""
        s, code, operator = self.schema, (kind, self._version(kind, inputs, output)), self.schema.OperatorT()
        if code not in self.codes:
            self.codes.append(code)
        operator.opcodeIndex = self.codes.index(code)
        operator.inputs, operator.outputs = np.asarray(inputs, np.int32), np.asarray([output], np.int32)
        table = NODE_OPTIONS[kind]
        if table is not None:
            operator.builtinOptionsType = getattr(s.BuiltinOptions, table)
            operator.builtinOptions = getattr(s, f"{table}T")()
            for name, value in options.items():
                if not hasattr(operator.builtinOptions, name):
                    raise TypeError(f"{kind} has no option {name!r}")
                setattr(operator.builtinOptions, name, value)
        self.operators.append(operator)
        return output

    def kind(self, tensor: int) -> np.dtype:
        return next(
            k for k, name in TENSOR_TYPES.items() if getattr(self.schema.TensorType, name) == self.tensors[tensor].type
        )

    def shape(self, tensor: int) -> list[int]:
        return self.tensors[tensor].shape.tolist()

    def scale(self, tensor: int) -> np.float32:
        """Of a tensor with one."""
        return self.tensors[tensor].quantization.scale[0]

    def zero(self, tensor: int) -> int:
        """The code that stands for zero."""
        return int(self.tensors[tensor].quantization.zeroPoint[0])

    def model(self, inputs: Mapping[str, int], outputs: Mapping[str, int], metadata: Mapping[str, bytes]) -> bytes:
        """The file's bytes. inputs, outputs: {name: tensor}, in their order."""
        s, model, graph = self.schema, self.schema.ModelT(), self.schema.SubGraphT()
        self._keep(set(outputs.values()))
        self._fuse(set(outputs.values()))
        for name, tensor in (*inputs.items(), *outputs.items()):
            self.tensors[tensor].name = name
        graph.name, graph.tensors, graph.operators = "main", self.tensors, self.operators
        graph.inputs, graph.outputs = (np.asarray(list(ends.values()), np.int32) for ends in (inputs, outputs))
        model.version, model.description, model.subgraphs = 3, "spequant", [graph]
        model.operatorCodes, model.metadata, model.signatureDefs = [], [], [self._signature(inputs, outputs)]
        used = sorted({operator.opcodeIndex for operator in self.operators})
        for operator in self.operators:
            operator.opcodeIndex = used.index(operator.opcodeIndex)
        for kind, version in (self.codes[i] for i in used):
            code = s.OperatorCodeT()
            code.builtinCode = getattr(s.BuiltinOperator, kind)
            code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
            model.operatorCodes.append(code)
        for name, data in metadata.items():
            entry = s.MetadataT()
            entry.name, entry.buffer = name, self._buffer(data)
            model.metadata.append(entry)
        model.buffers = self.buffers
        builder = needs("flatbuffers", "tflite").Builder(2**16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _keep(self, needed: set[int]) -> None:
        """Leave out operators whose result neither leaves the graph nor is read."""
        kept = []
        for operator in reversed(self.operators):
            if operator.outputs[0] in needed:
                kept.append(operator)
                needed.update(operator.inputs.tolist())
        self.operators = kept[::-1]

    def _fuse(self, ends: set[int]) -> None:
        """Put RELU and RELU6 of float values into the operator before them, where nothing else reads what that gives.
        In float LiteRT would do it, too; its own quantization of a float graph does not."""
        before = {operator.outputs[0]: operator for operator in self.operators}
        reads = Counter(tensor for operator in self.operators for tensor in operator.inputs.tolist())
        for operator in list(self.operators):
            kind, source = self.codes[operator.opcodeIndex][0], operator.inputs[0]
            written = before.get(source)
            if kind not in ("RELU", "RELU6") or written is None or reads[source] > 1 or source in ends:
                continue
            if self.codes[written.opcodeIndex][0] in FUSING and not written.builtinOptions.fusedActivationFunction:
                written.builtinOptions.fusedActivationFunction = getattr(self.schema.ActivationFunctionType, kind)
                written.outputs = operator.outputs
                before[written.outputs[0]] = written
                self.operators.remove(operator)

    def _signature(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
        signature = self.schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = ([self._end(*end) for end in e.items()] for e in (inputs, outputs))
        return signature

    def _end(self, name: str, tensor: int) -> Any:
        end = self.schema.TensorMapT()
        end.name, end.tensorIndex = name, tensor
        return end

    def _buffer(self, data: bytes) -> int:
        if data not in self.stored:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(data, np.uint8)
            self.buffers.append(buffer)
            self.stored[data] = len(self.buffers) - 1
        return self.stored[data]

    def _version(self, kind: str, inputs: Sequence[int], output: int) -> int:
        """The lowest version of the operator that has these types."""
        kinds = {self.kind(tensor) for tensor in (inputs[0], output)}
        if INT16 in kinds:
            return OF_TWO_TYPES[kind]
        if INT8 not in kinds:
            return 1
        if kind in IN_INT4 and self.tensors[inputs[1]].type == self.schema.TensorType.INT4:
            return IN_INT4[kind]
        weights = [self.shape(tensor) for tensor in inputs[:2]]
        grouped = kind == "CONV_2D" and weights[0][-1] != weights[1][-1]
        return 6 if grouped else IN_INT8.get(kind, 2)
