from __future__ import annotations

import pytest

from hilm.errors import StorageError
from hilm.files import write_file


def test_pieces_are_written_behind_each_other_and_folders_made(tmp_path):
    write_file(tmp_path / "a" / "b" / "c", b"one", memoryview(b"two"))
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"onetwo"


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(TypeError):
        write_file(path, b"after", "text")
    (tmp_path / "folder" / "below").mkdir(parents=True)
    for target in (path / "below", tmp_path / "folder"):
        with pytest.raises(StorageError, match="cannot write"):
            write_file(target, b"x")
    assert path.read_bytes() == b"before"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]
