"""Pickles of plain values: numbers, texts, bytes, lists, tuples, mappings, arrays of numbers or texts. Nothing is unpickled.

A pickle is a program for a stack machine that may call anything. Here its instructions are only listed (``pickletools``), and a
machine of this file follows those that make plain values. Of the functions that a pickle may name it knows those
by name with which numpy and torch write arrays; what they would do is done by code of this file, from literal bytes whose number is
compared with the shape. Whatever else the file names is refused. A tensor's numbers are read as those of any weights.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import BadInput
from data.storage.arrays import check_characters
from data.storage.regular_files import open_regular

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save wrote first, before it wrote zip files
_DTYPE = re.compile(r"[<>=|]?(f[248]|[iu][1248]|b1|[US]\d{1,6})")
_MARK = object()


class _Refused(Exception):
    """What a pickle holds that is no plain value."""


@dataclass
class _Function:
    """A function that the pickle names, one of `_FUNCTIONS`."""

    name: str


@dataclass
class _Dtype:
    """An array's type that is being read: numpy's code, and the order of its bytes."""

    code: str
    order: str = "<"

    def build(self, state: Any) -> None:
        right = isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "=")
        if not right or any(part is not None for part in state[2:5]):
            raise _Refused("an array of records")
        self.order = state[1]

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(self.code if self.code[0] in "<>=|" else self.order + self.code)


@dataclass
class _Array:
    """An array that is being read; ``values`` once its contents came."""

    values: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Dtype):
            raise _Refused("an array that is not laid out as numpy does")
        _, shape, dtype, is_fortran, content = state
        self.values = _array(content, dtype.numpy, shape, "F" if is_fortran else "C")


def read_plain_pickle(path: str | Path, most_axes: int = 2) -> Any:
    """What a pickle holds, or a file of ``torch.save``; arrays and tensors as numpy arrays.

    Args:
        most_axes: of an array; one of more is refused

    Raises:
        BadInput: the file cannot be read, is damaged, or holds anything but plain values.
    """
    path = Path(path)
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            value = TORCH_MAGIC if content[:4] == b"PK\x03\x04" else _finished(_run(content), most_axes)
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None
    except _Refused as error:
        raise BadInput(f"{path}: holds {error}; only numbers, texts, lists and arrays of them are read from a pickle") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError) as error:
        raise BadInput(f"{path}: no pickle, or a damaged one ({type(error).__name__}: {str(error)[:80]})") from None
    return _of_torch(path, str(path)) if isinstance(value, int) and value == TORCH_MAGIC else value


def _run(content: Any) -> Any:
    """The value that a pickle's instructions make, none of which calls anything; arrays as what they are made of."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for instruction, argument, _ in pickletools.genops(content):
        name = instruction.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _STEPS:
            _STEPS[name](stack, argument)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "STOP":
            [value] = stack
            return value
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"the instruction {name}")
    raise ValueError("it ends too early")


def _finished(value: Any, most_axes: int) -> Any:
    """The value, with arrays in place of what they were made of: a matrix, a list of them, or mappings of them in mappings."""
    if isinstance(value, _Function | _Dtype):
        raise _Refused("a function")
    if isinstance(value, _Array):
        if value.values is None:
            raise ValueError("an array without contents")
        if value.values.ndim > most_axes:
            raise _Refused(f"an array of more than {'two' if most_axes == 2 else most_axes} axes")
        return value.values
    if isinstance(value, list | tuple) and any(isinstance(each, _Array | _Function | _Dtype) for each in value):
        return type(value)(_finished(each, most_axes) for each in value)
    if isinstance(value, dict) and any(isinstance(each, _Array | _Function | _Dtype | dict) for each in value.values()):
        return {key: _finished(each, most_axes) for key, each in value.items()}
    return value


# ---- instructions ------------------------------------------------------------------------------------------------------

_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip


def _since_mark(stack: list) -> list:
    at = len(stack) - 1
    while stack[at] is not _MARK:
        at -= 1
        if at < 0:
            raise ValueError("no mark")
    values = stack[at + 1 :]
    del stack[at:]
    return values


def _append(stack: list, values: list) -> None:
    if not isinstance(stack[-1], list):
        raise _Refused("something that appends to other things than lists")
    stack[-1].extend(values)


def _set_items(stack: list, values: list) -> None:
    if not isinstance(stack[-1], dict) or len(values) % 2 or not all(isinstance(key, str | int) for key in values[::2]):
        raise _Refused("a mapping whose keys are neither texts nor numbers")
    stack[-1].update(zip(values[::2], values[1::2]))


def _tuple_of(count: int) -> Callable[[list, Any], None]:
    def step(stack: list, _: Any) -> None:
        values = stack[len(stack) - count :]
        if len(values) != count or any(each is _MARK for each in values):
            raise ValueError("too few values")
        stack[len(stack) - count :] = [tuple(values)]

    return step


def _name(stack: list, module: Any, name: Any) -> None:
    full = f"{module}.{name}"
    if full not in _FUNCTIONS:
        raise _Refused(f"the function or class {full[:80]!r}")
    stack.append(_Function(full))


def _global(stack: list, argument: str) -> None:
    _name(stack, *argument.split(" ", 1))


def _stack_global(stack: list, _: Any) -> None:
    name, module = stack.pop(), stack.pop()
    _name(stack, module, name)


def _reduce(stack: list, _: Any) -> None:
    arguments, function = stack.pop(), stack.pop()
    if not isinstance(function, _Function) or not isinstance(arguments, tuple):
        raise _Refused("a call of something that is no function")
    stack.append(_FUNCTIONS[function.name](*arguments))


def _build(stack: list, _: Any) -> None:
    state = stack.pop()
    if not isinstance(stack[-1], _Dtype | _Array):
        raise _Refused("an object with a state")
    stack[-1].build(state)


def _key_value(stack: list, _: Any) -> None:
    values = [stack.pop(), stack.pop()][::-1]
    _set_items(stack, values)


def _dict_since_mark(stack: list, _: Any) -> None:
    values = _since_mark(stack)
    stack.append({})
    _set_items(stack, values)


def _append_one(stack: list, _: Any) -> None:
    value = stack.pop()
    _append(stack, [value])


def _append_since_mark(stack: list, _: Any) -> None:
    values = _since_mark(stack)
    _append(stack, values)


def _set_since_mark(stack: list, _: Any) -> None:
    values = _since_mark(stack)
    _set_items(stack, values)


_STEPS: dict[str, Callable[[list, Any], Any]] = {
    "NONE": lambda stack, _: stack.append(None),
    "NEWTRUE": lambda stack, _: stack.append(True),
    "NEWFALSE": lambda stack, _: stack.append(False),
    "MARK": lambda stack, _: stack.append(_MARK),
    "POP": lambda stack, _: stack.pop(),
    "POP_MARK": lambda stack, _: _since_mark(stack),
    "EMPTY_LIST": lambda stack, _: stack.append([]),
    "EMPTY_TUPLE": lambda stack, _: stack.append(()),
    "EMPTY_DICT": lambda stack, _: stack.append({}),
    "LIST": lambda stack, _: stack.append(_since_mark(stack)),
    "TUPLE": lambda stack, _: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "DICT": _dict_since_mark,
    "APPEND": _append_one,
    "APPENDS": _append_since_mark,
    "SETITEM": _key_value,
    "SETITEMS": _set_since_mark,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
}


# ---- what arrays are written with --------------------------------------------------------------------------------------


def _array(content: Any, dtype: np.dtype, shape: Any, order: str) -> np.ndarray:
    """An array of literal bytes, as many as the shape says."""
    if isinstance(content, str):  # of Python 2
        content = content.encode("latin1")
    right = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape) and isinstance(content, bytes | bytearray)
    if not right:
        raise _Refused("an array without bytes of its own")
    if len(content) != math.prod(shape) * dtype.itemsize or not dtype.itemsize:
        raise ValueError(f"an array of shape {shape} and type {dtype} has {len(content)} bytes")
    return check_characters(np.frombuffer(content, dtype)).reshape(shape, order=order)


def _make_array(kind: Any, shape: Any, code: Any) -> _Array:
    if kind != _Function("numpy.ndarray"):
        raise _Refused("an array of another class")
    return _Array()


def _make_dtype(code: Any, *flags: Any) -> _Dtype:
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise _Refused(f"an array of type {str(code)[:20]!r}")
    return _Dtype(code)


def _make_scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, _Dtype):
        raise _Refused("a number of an unknown type")
    return _array(content, dtype.numpy, (), "C").item()


def _make_from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise _Refused("an array that is not laid out as numpy does")
    return _Array(_array(content, dtype.numpy, shape, order))


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("a text in another encoding than numpy's")
    return text.encode("latin1")


def _empty_mapping(*content: Any) -> dict:
    if content:
        raise _Refused("an ordered mapping that is made of something")
    return {}


def _no_bytes(*content: Any) -> bytes:
    if content:
        raise _Refused("bytes that are made of something")
    return b""


def _no_call(*content: Any) -> None:
    raise _Refused("a class of numpy's that it calls")


def _storage(content: Any) -> np.ndarray:
    """The numbers of a tensor, of the file that torch writes inside the pickle: read as that of any weights."""
    if not isinstance(content, bytes):
        raise _Refused("a tensor without bytes of its own")
    return _of_torch(io.BytesIO(content), "a tensor in the pickle", storage=True)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Array:
    numbers = (offset, *size, *stride)
    right = isinstance(storage, np.ndarray) and len(size) == len(stride) and all(type(n) is int and n >= 0 for n in numbers)
    if not right:
        raise _Refused("a tensor that is not laid out as torch does")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride)) if math.prod(size) else -1
    if last >= len(storage) or math.prod(size) > len(storage):
        raise ValueError(f"a tensor of shape {size} has {len(storage)} numbers")
    steps = [step * storage.itemsize for step in stride]
    return _Array(np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{module}.{name}": function
    for modules, name, function in (
        (("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct", _make_array),
        (("numpy.core.multiarray", "numpy._core.multiarray"), "scalar", _make_scalar),
        (("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer", _make_from_buffer),
        (("numpy",), "dtype", _make_dtype),
        (("numpy",), "ndarray", _no_call),
        (("_codecs",), "encode", _encode),
        (("__builtin__", "builtins"), "bytes", _no_bytes),
        (("collections",), "OrderedDict", _empty_mapping),
        (("torch._utils",), "_rebuild_tensor_v2", _rebuild_tensor),
        (("torch.storage",), "_load_from_bytes", _storage),
    )
    for module in modules
}


def _of_torch(source: Any, where: str, storage: bool = False) -> Any:
    """What torch.save wrote, with arrays for tensors."""
    import torch  # slow to import, and seldom needed

    from data.storage.torch_files import load_torch  # imports it, too

    try:
        value = load_torch(source)
    except BadInput:
        raise
    except Exception as error:  # whatever zip and torch raise on damaged bytes
        raise BadInput(f"{where}: damaged, or holds more than tensors and plain values ({type(error).__name__})") from None
    if storage:
        if not isinstance(value, torch.storage.TypedStorage) or not value.dtype.is_floating_point | (value.dtype == torch.int64):
            raise _Refused("a tensor of other numbers than floats and int64")
        return torch.tensor([], dtype=value.dtype).set_(value._untyped_storage).float().numpy()
    return _numpy_for_tensors(value)


def _numpy_for_tensors(value: Any) -> Any:
    if hasattr(value, "detach"):
        return value.detach().float().numpy()
    if isinstance(value, list | tuple):
        return type(value)(_numpy_for_tensors(each) for each in value) if any(hasattr(e, "detach") for e in value) else value
    if isinstance(value, dict) and any(hasattr(each, "detach") for each in value.values()):
        return {key: _numpy_for_tensors(each) for key, each in value.items()}
    return value
