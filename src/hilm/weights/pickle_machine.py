"""A reader of pickles that builds plain data and does nothing else.

A pickle is a program for a stack machine, and two of its instructions import a name and call it. Here a
name stays text and a call stays a record of itself, unless the caller supplies a builder of its own for
that very name. Instructions beyond the few that data needs are refused.

Nothing a pickle can say makes this machine hash, compare or recurse into what it built.
"""

from __future__ import annotations

import pickletools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hilm.errors import TruncatedFile, UnsafePickle
from hilm.weights.pickle_records import Call, Global, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Builder = Callable[[tuple[object, ...]], object]

MAX_STREAM = 64 << 20
MAX_OPCODES = 10_000_000
MAX_MARKS = 200
"""Builders that may be open inside one another."""

MAX_GLOBAL = 1_000
"""Characters of a module's or an object's name."""

_MAX_PROTOCOL = 5
_STOP = ord(".")


@dataclass(frozen=True, slots=True)
class Pickle:
    """What a pickle holds.

    Attributes:
        value: None, bool, int, float, str, bytes, tuple, list (sets too), ``Table``, ``Global``, ``Call``, or
            what a builder or ``persistent`` returned.
        stop: One behind its last byte.
        names: Every name it wanted imported, in order of appearance.
    """

    value: object
    stop: int
    names: tuple[str, ...]


def read_pickle(
    data: bytes, start: int, builders: Mapping[str, Builder], persistent: Callable[[object], object]
) -> Pickle:
    """Read one pickle without importing or calling anything it names.

    Args:
        data: At most 64 MiB with the pickle in it.
        start: Where it starts.
        builders: Called with the arguments in place of the function of that ``module.name``.
        persistent: Turns the id of an object stored elsewhere into what stands for that object.

    Raises:
        UnsafePickle: An instruction that data does not need, one that makes no sense, or too much of it.
        TruncatedFile: ``data`` ends before the pickle does.
    """
    if len(data) > MAX_STREAM:
        raise UnsafePickle(f"a pickle of {len(data):,} bytes; at most {MAX_STREAM >> 20} MiB are read")
    machine = _Machine(data, start, builders, persistent)
    value = machine.run()
    return Pickle(value, machine.at, tuple(machine.names))


class _Machine:
    """The stack machine.

    Attributes:
        at: Position of the next byte.
        stack: Values since the last open mark.
        outer: The stacks below each open mark.
    """

    def __init__(
        self,
        data: bytes,
        start: int,
        builders: Mapping[str, Builder],
        persistent: Callable[[object], object],
    ) -> None:
        self.data, self.at = data, start
        self.builders, self.persistent = builders, persistent
        self.stack: list[object] = []
        self.outer: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.names: dict[str, Global] = {}

    def run(self) -> object:
        """Obey instructions up to STOP."""
        for _ in range(MAX_OPCODES):
            code = self.take(1)[0]
            if code == _STOP:
                return self.pop()
            action = _ACTIONS.get(code)
            if action is None:
                raise UnsafePickle(f"the pickle holds the instruction {_NAMES.get(code, code)}")
            action(self)
        raise UnsafePickle(f"the pickle holds over {MAX_OPCODES:,} instructions")

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        start, self.at = self.at, self.at + count
        if self.at > len(self.data):
            raise TruncatedFile("the pickle ends in the middle of an instruction")
        return self.data[start : self.at]

    def number(self, width: int) -> int:
        """Read an unsigned integer of ``width`` bytes."""
        return int.from_bytes(self.take(width), "little")

    def line(self) -> str:
        """Return the next line, without its end."""
        stop = self.data.find(b"\n", self.at, self.at + MAX_GLOBAL + 1)
        if stop < 0 and len(self.data) - self.at > MAX_GLOBAL:
            raise UnsafePickle(f"the pickle holds a name of over {MAX_GLOBAL:,} characters")
        if stop < 0:
            raise TruncatedFile("the pickle ends in the middle of a name")
        return _text(self.take(stop + 1 - self.at)[:-1])

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        if not self.stack:
            raise UnsafePickle("the pickle takes a value that it never made")
        return self.stack.pop()

    def peek(self) -> object:
        value = self.pop()
        self.push(value)
        return value

    def mark(self) -> None:
        if len(self.outer) == MAX_MARKS:
            raise UnsafePickle(f"the pickle is nested more than {MAX_MARKS} levels deep")
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[object]:
        """Close the last mark and return what stands above it."""
        if not self.outer:
            raise UnsafePickle("the pickle closes a mark that it never set")
        values, self.stack = self.stack, self.outer.pop()
        return values

    def drop(self) -> None:
        if self.stack or not self.outer:
            self.pop()
        else:
            self.since_mark()

    def last(self, count: int) -> tuple[object, ...]:
        """Take the last values off the stack, in the order they were pushed."""
        if len(self.stack) < count:
            raise UnsafePickle("the pickle takes values that it never made")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def append(self, values: list[object]) -> None:
        target = self.peek()
        if isinstance(target, Call):
            target.contents.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise UnsafePickle("the pickle appends to something that is no list")

    def set_items(self, values: list[object]) -> None:
        target, keys, items = self.peek(), values[::2], values[1::2]
        if isinstance(target, Call):
            target.contents.extend(items)
        elif isinstance(target, Table) and len(keys) == len(items):
            target.pairs.extend(zip(keys, items, strict=True))
        else:
            raise UnsafePickle("the pickle puts items into something that is no dictionary")

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise UnsafePickle(f"the pickle recalls value {index}, which it never kept")
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.peek()

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnsafePickle("the pickle names something by a value that is no text")
        full = f"{module}.{name}"
        if len(module) > MAX_GLOBAL or len(name) > MAX_GLOBAL or not full.isprintable():
            raise UnsafePickle("the pickle names something unprintable or far too long")
        self.push(self.names.setdefault(full, Global(full)))

    def call(self) -> None:
        function, arguments = self.last(2)
        if not isinstance(function, Global | Call) or not isinstance(arguments, tuple):
            raise UnsafePickle("the pickle calls something that is no function")
        builder = self.builders.get(function.name) if isinstance(function, Global) else None
        self.push(builder(arguments) if builder else Call(function, arguments))

    def build(self) -> None:
        """Record the state of an object; attributes of a dictionary are none of its items and dropped."""
        state, target = self.pop(), self.peek()
        if isinstance(target, Call):
            target.contents.append(state)
        elif not isinstance(target, Table):
            raise UnsafePickle("the pickle gives attributes to something that has none")

    def protocol(self) -> None:
        version = self.number(1)
        if version > _MAX_PROTOCOL:
            raise UnsafePickle(f"the pickle follows protocol {version}; {_MAX_PROTOCOL} is the latest known")


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise UnsafePickle("the pickle holds text that is not UTF-8") from None


def _old_text(raw: bytes) -> str:
    """Text of Python 2, whose strings were bytes; what is not UTF-8 survives as lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def _sized(width: int, convert: Callable[[bytes], object]) -> Callable[[_Machine], None]:
    """Push what a length of ``width`` bytes and that many bytes stand for."""
    return lambda m: m.push(convert(m.take(m.number(width))))


def _integer(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


_ALLOWED: Mapping[str, Callable[[_Machine], object]] = {
    "PROTO": _Machine.protocol,
    "FRAME": lambda m: m.take(8),
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "NONE": lambda m: m.push(None),
    "NEWTRUE": lambda m: m.push(True),
    "NEWFALSE": lambda m: m.push(False),
    "BININT": lambda m: m.push(_integer(m.take(4))),
    "BININT1": lambda m: m.push(m.number(1)),
    "BININT2": lambda m: m.push(m.number(2)),
    "LONG1": _sized(1, _integer),
    "BINFLOAT": lambda m: m.push(*struct.unpack(">d", m.take(8))),
    "SHORT_BINUNICODE": _sized(1, _text),
    "BINUNICODE": _sized(4, _text),
    "BINUNICODE8": _sized(8, _text),
    "SHORT_BINSTRING": _sized(1, _old_text),
    "BINSTRING": _sized(4, _old_text),
    "SHORT_BINBYTES": _sized(1, bytes),
    "BINBYTES": _sized(4, bytes),
    "BINBYTES8": _sized(8, bytes),
    "EMPTY_TUPLE": lambda m: m.push(()),
    "TUPLE1": lambda m: m.push(m.last(1)),
    "TUPLE2": lambda m: m.push(m.last(2)),
    "TUPLE3": lambda m: m.push(m.last(3)),
    "TUPLE": lambda m: m.push(tuple(m.since_mark())),
    "EMPTY_LIST": lambda m: m.push([]),
    "APPEND": lambda m: m.append([m.pop()]),
    "APPENDS": lambda m: m.append(m.since_mark()),
    "EMPTY_SET": lambda m: m.push([]),
    "ADDITEMS": lambda m: m.append(m.since_mark()),
    "FROZENSET": lambda m: m.push(m.since_mark()),
    "EMPTY_DICT": lambda m: m.push(Table()),
    "SETITEM": lambda m: m.set_items(list(m.last(2))),
    "SETITEMS": lambda m: m.set_items(m.since_mark()),
    "BINGET": lambda m: m.get(m.number(1)),
    "LONG_BINGET": lambda m: m.get(m.number(4)),
    "BINPUT": lambda m: m.put(m.number(1)),
    "LONG_BINPUT": lambda m: m.put(m.number(4)),
    "MEMOIZE": lambda m: m.put(len(m.memo)),
    "GLOBAL": lambda m: m.name(m.line(), m.line()),
    "STACK_GLOBAL": lambda m: m.name(*m.last(2)),
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": lambda m: m.push(m.persistent(m.pop())),
}
"""The instructions that are obeyed; STOP is the only other one."""

_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}
_ACTIONS = {code: _ALLOWED[name] for code, name in _NAMES.items() if name in _ALLOWED}
