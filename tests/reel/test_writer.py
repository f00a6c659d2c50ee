from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import struct
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.errors import (
    HeaderError,
    StorageError,
)
from hilm.reel.container import ReelFile
from hilm.reel.crc32c import crc32c
from hilm.reel.records import Kind
from hilm.reel.writer import ReelWriter
from tests.reel.documents import manifest_of, sample_of
from tests.reel.files import MP4, faults, front_entry, seal, write


def test_bytes_are_those_of_the_format(tmp_path):
    """Twin of the writer, from the tables of the format alone."""
    facts = write(tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data[:24].hex() == "0000001866747970" + b"isom".hex() + "00000000" + b"isomhilm".hex()
    assert (
        data[24:56].hex() == f"00000001{b'uuid'.hex()}{len(data) - 24:016x}e947662ce6164cb182a751dfb8293ce7"
    )
    origin = data[56:]
    assert origin[:64] == seal(b"HILMREEL" + bytes.fromhex("0100 0000 00000000 0100000000000000") + bytes(36))
    assert origin[64:91] == b"safetensors headerheadchunk"
    footer = origin[-128:]
    assert footer[:8] == b"HILMEND1"
    (
        manifest,
        manifest_size,
    ) = struct.unpack_from("<QQ", footer, 8)
    index, index_size, index_crc, zero, generation, own = struct.unpack_from("<QQIIQQ", footer, 56)
    assert (index, index_size, zero, generation) == (91, 72, 0, 1)
    assert origin[91:115] == struct.pack("<QIIBBHI", 64, 18, crc32c(b"safetensors header"), 2, 0, 0, 0)
    assert origin[139:163] == struct.pack("<QIIBBHI", 86, 5, crc32c(b"chunk"), 1, 0, 0, 32)
    assert crc32c(origin[91:163]) == index_crc
    assert manifest == 163
    assert manifest + manifest_size == own == len(origin) - 128
    assert footer[24:56] == hashlib.sha256(origin[163:own]).digest()
    assert footer == seal(footer[:-4])
    assert facts.manifest_sha256 == footer[24:56].hex()
    assert (facts.payload_bytes, facts.bits_per_weight) == (len(data) - 24, (len(data) - 24) / 4)
    assert (facts.size, facts.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_same_input_same_bytes(tmp_path):
    assert write(tmp_path / "a").sha256 == write(tmp_path / "b").sha256


content = st.binary(min_size=1, max_size=300)


@given(st.integers(1, 1 << 40), st.text(max_size=40))
@settings(max_examples=30)
def test_payload_counts_the_manifest_that_states_it(tmp_path_factory, weights, note):
    out = tmp_path_factory.mktemp("reel") / "x"
    totals = {"weights": weights, "bytes_source": 1}
    facts = write(out, totals=totals, settings={"note": note})
    with ReelFile.open(out) as reel:
        assert reel.manifest["totals"]["bytes_payload"] == facts.size - 24


def test_an_older_reel_is_replaced_only_when_finished(tmp_path):
    out = tmp_path / "x"
    write(out)
    before = out.read_bytes()
    with ReelWriter(out) as writer:
        writer.add_record(Kind.BLOB, b"new", 0)
        assert out.read_bytes() == before
    assert out.read_bytes() == before
    write(out, chunks=[b"other"])
    assert out.read_bytes() != before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, StorageError("x")])
def test_an_error_leaves_nothing(tmp_path, error):
    with pytest.raises(BaseException), ReelWriter(tmp_path / "x") as writer:  # noqa: B017, PT011, PT012
        writer.add_record(Kind.BLOB, b"data", 0)
        assert [path.name for path in tmp_path.iterdir()] == ["x.part"]
        raise error
    assert list(tmp_path.iterdir()) == []


def test_the_writer_refuses_what_no_reader_would_accept(tmp_path):
    front = front_entry(MP4)
    for bad in (
        {"generation": 2},
        {"front": front | {"size": 3}},
        {"front": front | {"crc32c": "0x00000000"}},
        {"samples": [sample_of()]},
    ):
        manifest = manifest_of(front=front) | bad
        with pytest.raises(HeaderError), ReelWriter(tmp_path / "x", MP4) as writer:
            writer.finish(manifest)
    with ReelWriter(tmp_path / "x") as writer, pytest.raises(HeaderError):
        writer.add_record(Kind.BLOB, b"", 0)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_reel(tmp_path):
    with ReelWriter(tmp_path / "x") as first:
        with pytest.raises(StorageError, match="another program"):
            ReelWriter(tmp_path / "x")
        first.finish(manifest_of())
        write(tmp_path / "x")
    assert faults((tmp_path / "x").read_bytes()) == []


def test_only_one_of_many_racing_writers_holds_the_part(tmp_path):
    """Whoever gets in leaves a stale file behind, which the next one takes over."""
    stale = tmp_path / "x.part"
    stale.write_bytes(b"left by a dead writer")

    def attempt(_):
        with contextlib.suppress(StorageError):
            writer = ReelWriter(tmp_path / "x")
            held = os.path.samestat(os.fstat(writer._descriptor), stale.stat())
            writer.close()
            return held

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(200)))
    assert True in outcomes
    assert False not in outcomes
    assert list(tmp_path.iterdir()) == []


def test_a_symbolic_link_is_not_followed(tmp_path):
    (tmp_path / "x.part").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_bytes(b"precious")
    with pytest.raises(StorageError):
        ReelWriter(tmp_path / "x")
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_killed_writer_leaves_no_reel(tmp_path):
    program = """
        import sys, pathlib
        from hilm.reel.writer import ReelWriter
        writer = ReelWriter(pathlib.Path(sys.argv[1]))
        for i in range(10**9):
            writer.add_record(2, bytes(1000), 0)
            if i == 10:
                print("writing", flush=True)
    """
    out = tmp_path / "x"
    command = [sys.executable, "-c", textwrap.dedent(program), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        with pytest.raises(StorageError, match="another program"):
            ReelWriter(out)
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == ["x.part"]
    write(out)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_full_disk(tmp_path, full_disk):
    with pytest.raises(StorageError, match="cannot write") as caught, ReelWriter(tmp_path / "x") as writer:  # noqa: PT012
        writer.add_record(Kind.BLOB, bytes(90_000), 0)
        writer.add_record(Kind.BLOB, bytes(90_000), 0)
    assert caught.value.__cause__.errno == errno.EFBIG
    with pytest.raises(StorageError):
        ReelWriter(tmp_path / "y", bytes(200_000))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_or_a_folder_in_the_way(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        ReelWriter(tmp_path / "missing" / "x")
    (tmp_path / "x").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        write(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
