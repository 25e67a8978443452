"""The few pickle opcodes that `torch.save` uses for plain data, interpreted by hand, so that nothing in a file can run.

The standard library's `pickletools` tells the opcodes and their arguments apart; what they do is
done here.

No object is made but lists, dicts, tuples, numbers, text and descriptions of tensors; two functions
are known by name and neither is called: an empty `collections.OrderedDict` is a dict,
`torch._utils._rebuild_tensor_v2` a description. Every opcode is at least a byte and makes at most
one object, so time and memory are bounded by the file's size. Values may share parts or contain
themselves: whoever reads them must look at types and never walk them blindly.

Opcodes: protocols 2 to 4. Tensors: torch/serialization.py and torch/_utils.py (PyTorch 2).
"""

from __future__ import annotations

import dataclasses
import pickletools
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
_MAX_NAME = 512
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
    machine, at = _Machine(), 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            at = position or 0
            if opcode.name == "STOP":
                return machine.stack.pop()
            step = _STEPS.get(opcode.name)
            if step is None:
                raise RefusedPickleError(f"opcode {opcode.name} is not needed for tensors")
            step(machine, argument)
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise RefusedPickleError(f"damaged at byte {at} or after") from error
    raise RefusedPickleError("no end")


class _Machine:
    """The stack machine of pickle, with the opcodes of plain data only; each method is one, told its argument."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def protocol(self, version: int) -> None:
        if version > 5:
            raise RefusedPickleError("a later protocol")

    def push_integer(self, value: int) -> None:
        if not -(2**63) <= value < 2**63:
            raise RefusedPickleError("an integer of more than 64 bits")
        self.stack.append(value)

    def push_text(self, text: str) -> None:
        text.encode()  # half a surrogate pair, which pickletools lets pass, cannot be printed
        self.stack.append(text)

    def mark(self, _: None) -> None:
        self._marks.append(self.stack)
        self.stack = []

    def _popped_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._marks.pop()
        return items

    def push_marked_tuple(self, _: None) -> None:
        items = tuple(self._popped_mark())
        self.stack.append(items)

    def append(self, _: None) -> None:
        value = self.stack.pop()
        self._list().append(value)

    def extend(self, _: None) -> None:
        items = self._popped_mark()
        self._list().extend(items)

    def _list(self) -> list[Any]:
        target = self.stack[-1]
        if type(target) is not list:
            raise RefusedPickleError("an item for what is no list")
        return target

    def set_item(self, _: None) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._put_items([key, value])

    def set_items(self, _: None) -> None:
        self._put_items(self._popped_mark())

    def _put_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise RefusedPickleError("an item for what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):  # hashing anything else may take for ever
                raise RefusedPickleError("a key that is neither text nor a number")
            target[key] = value

    def remember(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self.stack[-1]

    def recall(self, place: int) -> None:
        self.stack.append(self._memo[place])

    def push_global(self, both: str) -> None:
        self._push_name(*both.split(" ", 1))

    def push_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_name(module, name)

    def _push_name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str or len(module) + len(name) > _MAX_NAME:
            raise RefusedPickleError("a global without a name")
        if (module, name) not in (_REBUILD, _ORDERED) and not (module == "torch" and name in _STORAGES):
            raise RefusedPickleError(f"it names {f'{module}.{name}'!a:.80}, which tensors do not need")
        self.stack.append(_Name(module, name))

    def push_storage(self, _: None) -> None:
        ident = self.stack.pop()
        if type(ident) is not tuple or len(ident) != 5 or type(ident[0]) is not str or ident[0] != "storage":
            raise RefusedPickleError("a reference to what is no storage")
        _, kind, key, _, elements = ident
        if type(kind) is not _Name or kind.module != "torch" or type(key) is not str or type(elements) is not int:
            raise RefusedPickleError("a reference to what is no storage")
        if not key.isascii() or not key.isdigit() or len(key) > 20 or elements < 0:
            raise RefusedPickleError("a reference to what is no storage")
        self.stack.append(StorageName(key, _STORAGES[kind.name], elements))

    def reduce(self, _: None) -> None:
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


def _push(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _push_tuple(size: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: None) -> None:
        if len(machine.stack) < size:
            raise IndexError(size)
        items = tuple(machine.stack[-size:])
        del machine.stack[-size:]
        machine.stack.append(items)

    return step


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "FRAME": lambda _machine, _size: None,
    "MARK": _Machine.mark,
    "EMPTY_DICT": _push(dict),
    "EMPTY_LIST": _push(list),
    "EMPTY_TUPLE": _push(tuple),
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), _Machine.push_integer),
    "BINFLOAT": lambda machine, value: machine.stack.append(value),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), _Machine.push_text),
    "TUPLE": _Machine.push_marked_tuple,
    "TUPLE1": _push_tuple(1),
    "TUPLE2": _push_tuple(2),
    "TUPLE3": _push_tuple(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": _Machine.push_global,
    "STACK_GLOBAL": _Machine.push_stack_global,
    "BINPERSID": _Machine.push_storage,
    "REDUCE": _Machine.reduce,
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
