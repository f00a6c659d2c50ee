"""PyTorch files that break one rule each, put together byte by byte.

``python -m tests.hostile.torch_files DIRECTORY`` writes them all, for use with other readers.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class HostileFile:
    """A file and the error that refuses it; None if it is harmless once nothing in it is run."""

    error: type[errors.HilmError] | None
    name: str
    data: bytes


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 2, view: bytes = b"") -> bytes:
    """A reference to a stored array: persistent id of the zip form, or with ``view`` of the older form."""
    return (
        b"("
        + text("storage")
        + f"ctorch\n{kind}\n".encode()
        + text(key)
        + text("cpu")
        + integer(count)
        + view
        + b"tQ"
    )


def tensor(
    stored: bytes = b"", offset: int = 0, shape: bytes = b"", strides: bytes = b"", rest: bytes = b"\x89}"
) -> bytes:
    """A call that rebuilds a tensor; by default two F32 values."""
    parts = (stored or storage()) + integer(offset) + (shape or sizes(2)) + (strides or sizes(1)) + rest
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + parts + b"tR"


def table(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def call(module: str, name: str, *arguments: str) -> bytes:
    return f"c{module}\n{name}\n(".encode() + b"".join(map(text, arguments)) + b"tR"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def members(pickle: bytes, **more: bytes) -> dict[str, bytes]:
    return {"a/data.pkl": pickle, "a/byteorder": b"little", "a/data/0": struct.pack("<2f", 1, 2)} | more


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as file:
        for name, data in entries.items():
            file.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return target.getvalue()


def zipped(body: bytes) -> bytes:
    """A zip form around a pickle's instructions."""
    return archive(members(pickled(body)))


def legacy(
    body: bytes,
    keys: bytes = b"](" + text("0") + b"e",
    data: bytes = struct.pack("<q2f", 2, 1, 2),
    magic: int = 0x1950A86A20F9469CFC6C,
    version: int = 1001,
) -> bytes:
    parts = (integer(magic), integer(version), b"}", body, keys)
    return b"".join(map(pickled, parts)) + data


def old_tensor(view: bytes = b"N") -> bytes:
    return tensor(storage(view=view))


def cases() -> Iterator[HostileFile]:
    for error, name, body in (*_instructions(), *_depths(), *_calls(), *_tensors()):
        yield HostileFile(error, name, zipped(body))
    for error, name, data in (*_archives(), *_patched(), *_legacy_files()):
        yield HostileFile(error, name, data)


def _instructions() -> Iterator[tuple[type[errors.HilmError] | None, str, bytes]]:
    unsafe = errors.UnsafePickle
    foreign = {
        "inst": b"(ios\nsystem\n", "obj": b"(cos\nsystem\no", "extension": b"\x82\x01", "dup": b"N2",
        "newobj-ex": b"cos\nsystem\n)}\x92", "byte-array": b"\x96" + bytes(8), "next-buffer": b"\x97",
        "text-id": b"P0\n", "long4": b"\x8b\x01\0\0\0\x01", "text-integer": b"I1\n", "pop-mark": b"(1",
        "text-memo": b"Np0\n", "text-list": b"(l", "unassigned": b"\xff", "zero": b"\0",
    }  # fmt: skip
    for name, body in foreign.items():
        yield unsafe, f"instruction-{name}", body
    broken = {
        "nothing": b"", "pop-of-nothing": b"0", "append-to-nothing": b"Na", "append-to-a-tuple": b")Na",
        "items-of-a-list": b"]NNs", "odd-items": b"}(Nu", "no-mark": b"NNt", "closed-below-the-mark": b"]N(a",
        "recall-of-nothing": b"h\x07", "recall-two-to-31": b"j\0\0\0\x80", "keep-nothing": b"q\0",
        "call-of-a-number": b"K\x01)R", "call-with-a-list": b"cos\nsystem\n]R", "state-of-a-list": b"]}b",
        "name-of-a-number": b"K\x01K\x02\x93", "long-name": b"c" + b"x" * 2_000 + b"\ny\n",
        "name-with-an-escape": b"c\x1b[31m\nred\n", "text-not-utf-8": b"X\x01\0\0\0\xff",
        "id-of-a-list": b"]Q",
        "protocol-6": b"\x80\x06N", "id-of-something-else": b"(" + text("file") + text("/etc/passwd") + b"tQ",
    }  # fmt: skip
    for name, body in broken.items():
        yield unsafe, name, body
    yield errors.TruncatedFile, "text-past-the-end", b"X\xff\xff\xff\xff"
    yield errors.TruncatedFile, "bytes-of-two-to-63", b"\x8e" + bytes(7) + b"\x80"
    yield errors.TruncatedFile, "unfinished-name", b"cos"
    yield None, "memo-two-to-31", table(w=tensor() + b"r\0\0\0\x80")


def _depths() -> Iterator[tuple[type[errors.HilmError] | None, str, bytes]]:
    unsafe = errors.UnsafePickle
    laughs = b"](NNNNNNNNe" + b"".join(b"q%c](" % i + b"h%c" % i * 8 + b"e" for i in range(40))
    yield unsafe, "million-deep-lists", b"]" * MILLION + b"a" * (MILLION - 1)
    yield unsafe, "million-deep-tuples", b")" + b"\x85" * MILLION
    yield unsafe, "million-deep-marks", b"(" * MILLION
    yield unsafe, "million-deep-tables", b"}" + (text("a") + b"}") * 300 + b"s" * 300
    yield unsafe, "list-in-itself", b"]q\0h\0a"
    yield unsafe, "table-in-itself", b"}q\0" + text("model") + b"h\0s"
    yield unsafe, "billion-laughs", laughs
    yield unsafe, "billion-laughs-beside-a-tensor", table(w=tensor(), x=laughs)
    few = b"](NNNNNNNNe" + b"".join(b"q%c](" % i + b"h%c" % i * 8 + b"e" for i in range(5))
    yield unsafe, "many-thousand-laughs-each", table(w=tensor(), **{f"k{i}": few for i in range(90)})
    yield None, "calls-in-one-another", table(w=tensor(), x=b"c__main__\nf\n" + b")R" * 100_000)
    yield (
        None,
        "deep-lists-in-a-call",
        table(w=tensor(), x=b"c__main__\nf\n" + b"]" * 100_000 + b"a" * 99_999 + b"\x85R"),
    )
    yield None, "call-that-holds-itself", table(w=tensor(), x=b"c__main__\nf\n)Rq\0h\0b")


def _calls() -> Iterator[tuple[type[errors.HilmError] | None, str, bytes]]:
    command = "touch hostile-was-here"
    yield None, "os-system", table(x=call("os", "system", command), w=tensor())
    yield None, "eval", table(x=call("builtins", "eval", f"__import__('os').system({command!r})"), w=tensor())
    yield (
        None,
        "exec-under-its-old-name",
        table(x=call("__builtin__", "exec", "raise SystemExit"), w=tensor()),
    )
    yield None, "open", table(x=call("builtins", "open", "hostile-was-here", "w"), w=tensor())
    yield None, "socket", table(x=call("socket", "create_connection", "127.0.0.1"), w=tensor())
    yield None, "state-of-a-class", table(x=b"cos\nenviron\n)\x81" + table(a=text("b")) + b"b", w=tensor())
    yield (
        None,
        "call-of-the-result-of-a-call",
        table(x=call("builtins", "getattr", "os", "system") + b")R", w=tensor()),
    )
    yield errors.UnsupportedFormat, "os-system-alone", call("os", "system", command)
    yield (
        errors.UnsupportedFormat,
        "tensor-only-in-a-call",
        b"c__main__\nModel\n)\x81" + table(w=tensor()) + b"b",
    )


def _tensors() -> Iterator[tuple[type[errors.HilmError] | None, str, bytes]]:
    header, unsafe, corrupt = errors.HeaderError, errors.UnsafePickle, errors.CorruptCheckpoint
    impossible: dict[str, dict[str, Any]] = {
        "offset-past-the-end": {"offset": 1}, "offset-negative": {"offset": -1},
        "offset-huge": {"offset": 1 << 62},
        "shape-too-large": {"shape": sizes(3)}, "shape-negative": {"shape": sizes(-1)},
        "strides-negative": {"offset": 1, "strides": sizes(-1)}, "strides-reach-out": {"strides": sizes(2)},
        "strides-huge": {"strides": sizes((1 << 63) - 1)},
        "strides-of-another-rank": {"strides": sizes(1, 1)},
        "rank-33": {"shape": sizes(*[1] * 33), "strides": sizes(*[1] * 33)},
        "shape-two-to-63": {"shape": sizes(1 << 63)}, "shape-true": {"shape": b"(\x88t"},
        "shape-text": {"shape": text("2")},
        "product-wraps": {"shape": sizes(1 << 32, 1 << 32), "strides": sizes(0, 0)},
    }  # fmt: skip
    for name, arguments in impossible.items():
        yield header, name, table(w=tensor(**arguments))
    strange: dict[str, dict[str, Any]] = {
        "offset-text": {"stored": storage() + text("0")}, "storage-none": {"stored": b"N"},
        "storage-call": {"stored": b"cos\nenviron\n"},
    }  # fmt: skip
    for name, arguments in strange.items():
        yield unsafe, f"tensor-{name}", table(w=tensor(**arguments))
    yield unsafe, "parameter-of-nothing", table(w=b"ctorch._utils\n_rebuild_parameter\n)R")
    yield unsafe, "storage-with-a-long-key", table(w=tensor(storage(key="x" * 60_000)))
    yield unsafe, "storage-negative", table(w=tensor(storage(count=-1)))
    yield unsafe, "table-of-a-number", table(w=b"ccollections\nOrderedDict\nK\x01\x85R")
    yield corrupt, "storage-past-its-member", table(w=tensor(storage(count=3)))
    yield corrupt, "storage-huge", table(w=tensor(storage(count=1 << 60)))
    yield corrupt, "storage-missing", table(w=tensor(storage(key="1")))
    yield corrupt, "storage-with-a-path", table(w=tensor(storage(key="../data.pkl")))
    yield corrupt, "storage-of-two-lengths", table(v=tensor(), w=tensor(storage("DoubleStorage")))
    yield errors.UnsupportedFormat, "storage-of-an-unknown-kind", table(w=tensor(storage("DreamStorage")))
    yield (
        errors.UnsupportedFormat,
        "complex-128",
        table(w=tensor(storage("ComplexDoubleStorage", count=0), shape=sizes(0))),
    )
    yield errors.UnsupportedFormat, "conjugate", table(w=tensor(rest=b"\x89}}" + text("conj") + b"\x88s"))
    yield errors.UnsupportedFormat, "strange-metadata", table(w=tensor(rest=b"\x89}K\x01"))
    yield header, "name-with-an-escape-sequence", table(**{"\x1b[31m": tensor()})
    yield (
        header,
        "name-empty",
        table(**{"": b"](" + b"}" + text("") + tensor() + b"se", "w": table(**{"\0": tensor()})}),
    )
    yield header, "name-lone-surrogate", table(**{"\ud800": tensor()})
    yield header, "name-of-5000-letters", table(**{"x" * 5_000: tensor()})
    yield errors.DuplicateTensor, "name-twice", b"}(" + (text("w") + tensor()) * 2 + b"u"
    yield (
        errors.DuplicateTensor,
        "name-twice-after-joining",
        table(**{"a.b": tensor(), "a": table(b=tensor())}),
    )


def _archives() -> Iterator[tuple[type[errors.HilmError] | None, str, bytes]]:
    corrupt, foreign = errors.CorruptCheckpoint, errors.NotACheckpoint
    plain = members(pickled(table(w=tensor())))
    good = archive(plain)
    yield corrupt, "deflated", archive(plain, zipfile.ZIP_DEFLATED)
    yield corrupt, "bzip2", archive(plain, zipfile.ZIP_BZIP2)
    yield corrupt, "member-above", archive(plain | {"../data.pkl": b""})
    yield corrupt, "member-with-a-long-name", archive(plain | {"a/data/" + "x" * 60_000: b""})
    yield corrupt, "member-absolute", archive(plain | {"/data.pkl": b""})
    yield (
        corrupt,
        "member-with-backslash",
        archive(plain | {"a/data/..0": b"", "a/data/x": b""}).replace(b"..0", b"\\.0"),
    )
    yield corrupt, "member-twice", archive(plain | {"a/data/z": bytes(8)}).replace(b"a/data/z", b"a/data/0")
    yield corrupt, "member-inside-another", _overlapping(plain)
    yield corrupt, "byte-order", archive(plain | {"a/byteorder": b"middle"})
    yield corrupt, "byte-order-huge", archive(plain | {"a/byteorder": b"little" * 1_000})
    yield foreign, "two-pickles", archive(plain | {"b/data.pkl": b""})
    yield foreign, "no-pickle", archive({"a/x.npy": b""})
    yield foreign, "empty", b""
    yield foreign, "empty-archive", archive({})
    yield foreign, "html", b"<!DOCTYPE html>"
    yield errors.UnsupportedFormat, "tar", bytes(257) + b"ustar\x0000" + bytes(500)
    yield errors.TruncatedFile, "cut", good[:-1]
    yield errors.TruncatedFile, "cut-in-half", good[: len(good) // 2]
    yield errors.TruncatedFile, "four-bytes", good[:4]
    yield errors.TruncatedFile, "bytes-behind", good + b"\0"
    yield errors.TruncatedFile, "commented", good[:-2] + b"\x01\0x"
    yield corrupt, "bytes-before", b"PK\3\4" + good
    yield errors.UnsafePickle, "pickle-over-64-mib", archive(members(bytes((64 << 20) + 1)))


def _overlapping(plain: dict[str, bytes]) -> bytes:
    """The directory places ``a/data/0`` at a copy of it, header and all, within the data of ``a/data/1``."""
    alone = archive({"a/data/0": plain["a/data/0"]})
    copy = alone[: alone.index(b"PK\1\2")]
    data = archive(plain | {"a/data/1": copy})
    inner = data.rindex(copy)
    offset = data.index(b"a/data/0", data.index(b"PK\1\2", inner)) - 4
    return data[:offset] + struct.pack("<I", inner) + data[offset + 4 :]


def _patched() -> Iterator[tuple[type[errors.HilmError] | None, str, bytes]]:
    """One field of the directory (``PK 1 2``), of a member's header (``PK 3 4``) or of the end changed."""
    good = archive(members(pickled(table(w=tensor()))))
    entry, end = good.index(b"PK\1\2"), good.index(b"PK\5\6")
    second = good.index(b"PK\1\2", entry + 1)
    patches = {
        "entry-sign": (entry, b"XX"), "entry-encrypted": (entry + 8, b"\1\0"),
        "entry-deflated": (entry + 10, b"\x08\0"),
        "entry-larger": (entry + 24, b"\xff\xff\0\0"), "entry-packed-smaller": (entry + 20, b"\1\0\0\0"),
        "entry-long-name": (entry + 28, b"\xff\xff"), "entry-other-disk": (entry + 34, b"\1\0"),
        "entry-same-offset": (second + 42, bytes(4)), "entry-far-offset": (entry + 42, b"\xfe\xff\xff\xff"),
        "entry-name-not-utf-8": (entry + 46, b"\xff"), "entry-other-crc": (entry + 16, b"\1\2\3\4"),
        "entry-sizes-too-large": (entry + 20, b"\xfe\xff\xff\xff" * 2),
        "local-sign": (good.index(b"PK\3\4", 1), b"XX"), "local-name": (30, b"b"),
        "local-deflated": (8, b"\x08\0"), "local-flags": (6, b"\1\0"),
        "local-larger": (22, b"\xfe\0\0\0"), "local-zero": (18, bytes(8)),
        "local-long-extra": (28, b"\xff\xff"),
        "end-more-entries": (end + 8, b"\x09\0\x09\0"), "end-fewer-entries": (end + 8, b"\1\0\1\0"),
        "end-counts-differ": (end + 8, b"\1\0"), "end-other-disk": (end + 4, b"\1\0"),
        "end-begin-off": (end + 16, b"\0\0\0\0"), "end-length-off": (end + 12, b"\0\0\0\0"),
    }  # fmt: skip
    for name, (at, data) in patches.items():
        yield errors.CorruptCheckpoint, name, good[:at] + data + good[at + len(data) :]
    yield errors.NotACheckpoint, "first-sign", b"XXXX" + good[4:]


def _legacy_files() -> Iterator[tuple[type[errors.HilmError] | None, str, bytes]]:
    body, corrupt = table(w=old_tensor()), errors.CorruptCheckpoint
    yield errors.NotACheckpoint, "legacy-other-magic", legacy(body, magic=1)
    yield errors.NotACheckpoint, "legacy-other-version", legacy(body, version=1000)
    yield errors.NotACheckpoint, "pickle-of-something", pickled(call("os", "system", "true"))
    yield corrupt, "legacy-no-keys", legacy(body, keys=b"N")
    yield corrupt, "legacy-keys-of-numbers", legacy(body, keys=b"](K\0e")
    yield corrupt, "legacy-key-missing", legacy(body, keys=b"]")
    yield corrupt, "legacy-key-twice", legacy(body, keys=b"](" + text("0") * 2 + b"e")
    yield corrupt, "legacy-key-of-nothing", legacy(body, keys=b"](" + text("0") + text("1") + b"e")
    yield corrupt, "legacy-count-differs", legacy(body, data=struct.pack("<q2f", 3, 1, 2))
    yield corrupt, "legacy-count-negative", legacy(body, data=struct.pack("<q2f", -2, 1, 2))
    yield errors.TruncatedFile, "legacy-cut-storage", legacy(body)[:-1]
    yield errors.TruncatedFile, "legacy-cut-count", legacy(body)[:-9]
    yield errors.TruncatedFile, "legacy-cut-pickle", legacy(body)[:-20]
    huge = table(w=tensor(storage(count=1 << 60, view=b"N")))
    yield errors.TruncatedFile, "legacy-huge-storage", legacy(huge)
    for name, first, length in (("past", 1, 2), ("negative", -1, 1), ("backwards", 1, -1)):
        view = b"(" + text("v") + integer(first) + integer(length) + b"t"
        yield errors.UnsafePickle, f"legacy-view-{name}", legacy(table(w=old_tensor(view)))
    inner = b"(" + text("v") + integer(1) + integer(1) + b"t"
    yield errors.HeaderError, "legacy-tensor-past-its-view", legacy(table(w=old_tensor(inner)))
    yield errors.UnsafePickle, "legacy-foreign-instruction", legacy(b"(ios\nsystem\n")


def valid_cases() -> Iterator[tuple[str, bytes]]:
    """Files of two F32 values 1 and 2 named ``w``, in every guise: (name, data)."""
    body = table(w=tensor())
    yield "zip", zipped(body)
    yield (
        "zip-without-byte-order",
        archive({k: v for k, v in members(pickled(body)).items() if "order" not in k}),
    )
    yield "zip-with-folders", archive({"a/": b"", "a/data/": b""} | members(pickled(body)))
    yield "zip-without-folder", archive({k[2:]: v for k, v in members(pickled(body)).items()})
    big = {"a/byteorder": b"big", "a/data/0": struct.pack(">2f", 1, 2)}
    yield "zip-big-endian", archive(members(pickled(body)) | big)
    yield "python-2-dictionary", zipped(b"ccollections\nOrderedDict\n]](" + text("w") + tensor() + b"ea\x85R")
    yield "python-2-text", zipped(b"}U\x01w" + tensor() + b"s")
    yield "old-tensor", zipped(table(w=tensor(rest=b"").replace(b"_v2", b"")))
    yield "size-object", zipped(table(w=tensor(shape=b"ctorch\nSize\n" + sizes(2) + b"\x85R")))
    yield (
        "attributes",
        zipped(b"ccollections\nOrderedDict\n)R(" + text("w") + tensor() + b"u" + table(x=b"N") + b"b"),
    )
    yield "legacy", legacy(table(w=old_tensor()))
    view = b"(" + text("v") + integer(1) + integer(2) + b"t"
    three = storage(count=3, view=view)
    yield "legacy-view", legacy(table(w=tensor(three)), data=struct.pack("<q3f", 3, 9, 1, 2))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for case in cases():
        (target / f"{case.error.__name__ if case.error else 'inert'}-{case.name}.pt").write_bytes(case.data)
    for name, data in valid_cases():
        (target / f"valid-{name}.pt").write_bytes(data)
