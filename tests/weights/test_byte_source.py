import os

import numpy as np
import pytest

from hilm.errors import SourceChanged, TruncatedFile
from hilm.weights.byte_source import FileSource


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 400)
    return path


def test_ranges_are_read_into_the_callers_buffer(file):
    source, out = FileSource.open(file), np.empty(7, np.uint8)
    source.read_into(255, out)
    assert out.tolist() == [255, 0, 1, 2, 3, 4, 5]
    assert source.read(3, 5) == b"\3\4"
    source.close()
    source.close()


def test_reading_ahead_is_asked_for_unless_ranges_are_few_and_far_apart(file, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: asked.append(arguments[-1]))
    source = FileSource.open(file)
    source.expect((start, start + 10) for start in range(0, 100_000, 1_000))
    source.expect((start, start + 900) for start in range(0, 100_000, 1_000))
    source.expect([])
    assert asked == [
        os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_RANDOM, os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_SEQUENTIAL,
    ]  # fmt: skip
    source.close()


def test_a_file_that_shrank_or_changed_is_noticed(file):
    source = FileSource.open(file)
    with pytest.raises(TruncatedFile):
        source.read(source.size - 1, source.size + 1)
    file.write_bytes(b"short")
    with pytest.raises(SourceChanged):
        source.check_unchanged()
    with pytest.raises(SourceChanged):
        source.read(0, 10_000)
    source.close()
