"""The few pickle opcodes that `torch.save` uses for plain data, interpreted by hand, so that nothing in a file can run.

No object is made but lists, dicts, tuples, numbers, text and descriptions of tensors; two functions are known by name
and neither is called: an empty `collections.OrderedDict` is a dict, `torch._utils._rebuild_tensor_v2` a description.
Every step reads at least a byte and makes at most one object, so time and memory are bounded by the file's size.
Values may share parts or contain themselves: whoever reads them must look at types and never walk them blindly.

Opcodes: Python's `pickletools` (protocols 2 to 4). Tensors: torch/serialization.py and torch/_utils.py (PyTorch 2).
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

_STORAGES = {
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "<?",
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<V2",
}
_REBUILD = ("torch._utils", "_rebuild_tensor_v2")
_ORDERED = ("collections", "OrderedDict")
_MAX_NAME_BYTES = 256
_MAX_INTEGER_BYTES = 8
_MAX_AXES = 8


class RefusedPickleError(Exception):
    """What a pickle does that plain tensors need not, or where it ends too soon."""


@dataclasses.dataclass(frozen=True, slots=True)
class StorageName:
    """A storage: the record of the archive that holds it, its element type, and how many elements it says it has."""

    key: str
    dtype: str
    elements: int


@dataclasses.dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor: a window on a storage, in elements."""

    storage: StorageName
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Name:
    """A global, by name only."""

    module: str
    name: str


def read_pickle(data: bytes) -> Any:
    """Interpret a pickle of plain data and tensors.

    Raises
    ------
    RefusedPickleError
        Any other opcode or global, or a pickle that is damaged.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:
        raise RefusedPickleError(f"damaged at byte {machine.at}") from error


class _Machine:
    """The stack machine of pickle, with the opcodes of plain data only."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0
        self.stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Go on to the STOP."""
        data, steps = self._data, _STEPS
        while True:
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack.pop()
            step = steps.get(code)
            if step is None:
                raise RefusedPickleError(f"opcode 0x{code:02x} is not needed for tensors")
            step(self)

    def number(self, form: str, size: int) -> Any:
        (value,) = struct.unpack_from(form, self._data, self.at)
        self.at += size
        return value

    def _text(self, size: int) -> str:
        if size > len(self._data) - self.at:
            raise RefusedPickleError("text beyond its end")
        text = self._data[self.at : self.at + size].decode("utf-8", "strict")
        self.at += size
        return text

    def _line(self) -> str:
        end = self._data.find(b"\n", self.at, self.at + _MAX_NAME_BYTES)
        if end < 0:
            raise RefusedPickleError("a name without end")
        text = self._data[self.at : end].decode("ascii", "strict")
        self.at = end + 1
        return text

    def _popped_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._marks.pop()
        return items

    # One method for each opcode, or for a few.

    def protocol(self) -> None:
        if self.number("<B", 1) > 5:
            raise RefusedPickleError("a later protocol")

    def frame(self) -> None:
        self.number("<Q", 8)

    def mark(self) -> None:
        self._marks.append(self.stack)
        self.stack = []

    def push_long(self) -> None:
        size = self.number("<B", 1)
        if size > _MAX_INTEGER_BYTES or size > len(self._data) - self.at:
            raise RefusedPickleError("an integer of more than 64 bits")
        self.stack.append(int.from_bytes(self._data[self.at : self.at + size], "little", signed=True))
        self.at += size

    def push_text(self) -> None:
        self.stack.append(self._text(self.number("<I", 4)))

    def push_short_text(self) -> None:
        self.stack.append(self._text(self.number("<B", 1)))

    def push_marked_tuple(self) -> None:
        items = tuple(self._popped_mark())
        self.stack.append(items)

    def append(self) -> None:
        value = self.stack.pop()
        self._list().append(value)

    def extend(self) -> None:
        items = self._popped_mark()
        self._list().extend(items)

    def _list(self) -> list[Any]:
        target = self.stack[-1]
        if type(target) is not list:
            raise RefusedPickleError("an item for what is no list")
        return target

    def set_item(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._put_items([key, value])

    def set_items(self) -> None:
        self._put_items(self._popped_mark())

    def _put_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise RefusedPickleError("an item for what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):  # hashing anything else may take for ever
                raise RefusedPickleError("a key that is neither text nor a number")
            target[key] = value

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def push_global(self) -> None:
        module = self._line()
        self._push_name(module, self._line())

    def push_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_name(module, name)

    def _push_name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str or len(module) + len(name) > 2 * _MAX_NAME_BYTES:
            raise RefusedPickleError("a global without a name")
        if (module, name) not in (_REBUILD, _ORDERED) and not (module == "torch" and name in _STORAGES):
            raise RefusedPickleError(f"it names {f'{module}.{name}'!a:.80}, which tensors do not need")
        self.stack.append(_Name(module, name))

    def push_storage(self) -> None:
        ident = self.stack.pop()
        if type(ident) is not tuple or len(ident) != 5 or type(ident[0]) is not str or ident[0] != "storage":
            raise RefusedPickleError("a reference to what is no storage")
        _, kind, key, _, elements = ident
        if type(kind) is not _Name or kind.module != "torch" or type(key) is not str or type(elements) is not int:
            raise RefusedPickleError("a reference to what is no storage")
        if not key.isascii() or not key.isdigit() or len(key) > 20 or elements < 0:
            raise RefusedPickleError("a reference to what is no storage")
        self.stack.append(StorageName(key, _STORAGES[kind.name], elements))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Name or type(arguments) is not tuple:
            raise RefusedPickleError("a call of what is no function")
        known = (function.module, function.name)
        if known == _ORDERED and not arguments:
            self.stack.append({})
        elif known == _REBUILD:
            self.stack.append(_tensor(arguments))
        else:
            raise RefusedPickleError("a call that tensors do not need")


_STOP = ord(".")


def _push_number(form: str, size: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.stack.append(machine.number(form, size))

    return step


def _push(make: Callable[[], Any]) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.stack.append(make())

    return step


def _push_tuple(size: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        if len(machine.stack) < size:
            raise IndexError(size)
        items = tuple(machine.stack[-size:])
        del machine.stack[-size:]
        machine.stack.append(items)

    return step


def _remember(form: str, size: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.memo[machine.number(form, size)] = machine.stack[-1]

    return step


def _recall(form: str, size: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.stack.append(machine.memo[machine.number(form, size)])

    return step


_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.protocol,
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("}"): _push(dict),
    ord("]"): _push(list),
    ord(")"): _push(tuple),
    ord("N"): _push(lambda: None),
    0x88: _push(lambda: True),
    0x89: _push(lambda: False),
    ord("J"): _push_number("<i", 4),
    ord("K"): _push_number("<B", 1),
    ord("M"): _push_number("<H", 2),
    ord("G"): _push_number(">d", 8),
    0x8A: _Machine.push_long,
    ord("X"): _Machine.push_text,
    0x8C: _Machine.push_short_text,
    ord("t"): _Machine.push_marked_tuple,
    0x85: _push_tuple(1),
    0x86: _push_tuple(2),
    0x87: _push_tuple(3),
    ord("a"): _Machine.append,
    ord("e"): _Machine.extend,
    ord("s"): _Machine.set_item,
    ord("u"): _Machine.set_items,
    ord("q"): _remember("<B", 1),
    ord("r"): _remember("<I", 4),
    0x94: _Machine.memoize,
    ord("h"): _recall("<B", 1),
    ord("j"): _recall("<I", 4),
    ord("c"): _Machine.push_global,
    0x93: _Machine.push_stack_global,
    ord("Q"): _Machine.push_storage,
    ord("R"): _Machine.reduce,
}


def _tensor(arguments: tuple[Any, ...]) -> TensorView:
    """A tensor from the arguments of `_rebuild_tensor_v2`: storage, offset, size, stride, and what is not needed."""
    if not 4 <= len(arguments) <= 7:
        raise RefusedPickleError("a tensor of other parts")
    storage, offset, shape, strides = arguments[:4]
    if type(storage) is not StorageName or type(shape) is not tuple or type(strides) is not tuple:
        raise RefusedPickleError("a tensor of other parts")
    if len(shape) != len(strides) or len(shape) > _MAX_AXES:
        raise RefusedPickleError("a tensor of other axes")
    if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
        raise RefusedPickleError("a tensor of sizes below zero")
    return TensorView(storage, offset, shape, strides)
