"""Graphs of networks in the format that ONNX Runtime reads, written without any other package.

An ONNX file is a protocol buffer: fields of (number, kind, value). Only what graphs of convolutional networks need is
here; numbers of fields and types are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPSET, IR_VERSION = 17, 8
_TYPES = {np.dtype(t): n for t, n in ((np.float32, 1), (np.int64, 7), (np.float16, 10), (np.float64, 11))}
_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7  # types of attributes

Attribute = float | int | str | Sequence[int]


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _attribute(name: str, value: Attribute) -> bytes:
    head = _bytes(1, name)
    if isinstance(value, float):
        return head + _varint(2 << 3 | 5) + struct.pack("<f", value) + _number(20, _FLOAT)
    if isinstance(value, int):
        return head + _number(3, value) + _number(20, _INT)
    if isinstance(value, str):
        return head + _bytes(4, value) + _number(20, _STRING)
    return head + b"".join(_number(8, number) for number in value) + _number(20, _INTS)


class Graph:
    """A graph under construction; values are named by strings.

    Example:
        >>> graph = Graph()
        >>> x = graph.input("x", 4)
        >>> graph.output("y", graph.node("Relu", x))
        >>> len(graph.model()) > 0
        True
    """

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def input(self, name: str, dimensions: int, dtype: type[np.floating[Any]] = np.float32) -> str:
        """An input of so many dimensions of any length."""
        self._inputs.append(self._value(name, dimensions, dtype))
        return name

    def output(self, name: str, value: str, dtype: type[np.floating[Any]] = np.float32) -> None:
        """Hand a value out."""
        self._nodes.append(self._node("Identity", [value], [name], {}))
        self._outputs.append(self._value(name, None, dtype))

    def constant(self, array: NDArray[Any]) -> str:
        """A constant; float16 is turned into float32 when the graph is loaded."""
        name = self._name()
        data = np.ascontiguousarray(array)
        dims = b"".join(_number(1, side) for side in array.shape)
        little = data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes()
        self._constants.append(dims + _number(2, _TYPES[data.dtype]) + _bytes(8, name) + _bytes(9, little))
        return self.node("Cast", name, to=_TYPES[np.dtype(np.float32)]) if data.dtype == np.float16 else name

    def node(self, kind: str, *inputs: str | float, **attributes: Attribute) -> str:
        """Apply an operator; a number is a constant of one element."""
        names = [value if isinstance(value, str) else self.constant(np.array([value], np.float32)) for value in inputs]
        output = self._name()
        self._nodes.append(self._node(kind, names, [output], attributes))
        return output

    def split(self, value: str, sizes: Sequence[int]) -> list[str]:
        """Cut a value (B, C, ...) along its channels."""
        outputs = [self._name() for _ in sizes]
        names = [value, self.constant(np.array(sizes, np.int64))]
        self._nodes.append(self._node("Split", names, outputs, {"axis": 1}))
        return outputs

    @staticmethod
    def _node(kind: str, inputs: Iterable[str], outputs: Iterable[str], attributes: Mapping[str, Attribute]) -> bytes:
        parts = [_bytes(1, name) for name in inputs] + [_bytes(2, name) for name in outputs] + [_bytes(4, kind)]
        return b"".join(parts + [_bytes(5, _attribute(name, value)) for name, value in attributes.items()])

    @staticmethod
    def _value(name: str, dimensions: int | None, dtype: type[np.floating[Any]]) -> bytes:
        shape = b"" if dimensions is None else _bytes(2, _bytes(1, b"") * dimensions)
        return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, _TYPES[np.dtype(dtype)]) + shape))

    def model(self) -> bytes:
        """The whole, as a file holds it."""
        fields = [(1, self._nodes), (5, self._constants), (11, self._inputs), (12, self._outputs)]
        graph = b"".join(_bytes(field, part) for field, parts in fields for part in parts) + _bytes(2, "gic")
        opset = _bytes(8, _bytes(1, "") + _number(2, OPSET))
        return _number(1, IR_VERSION) + _bytes(7, graph) + opset
