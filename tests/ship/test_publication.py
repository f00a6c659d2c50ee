from __future__ import annotations

import pytest

from hilm.errors import UsageError
from hilm.ship.publication import check_free, files_of, publish, staged


def test_a_graph_appears_with_its_weights(tmp_path):
    path = tmp_path / "new" / "model.onnx"
    with staged(path) as part:
        part.write_bytes(b"graph")
        part.with_name("model.onnx.data").write_bytes(b"weights")
        assert [file.name for file in files_of(part)] == ["model.onnx.data", "model.onnx"]
        assert not path.exists()
        publish(part, path)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {
        "model.onnx": b"graph", "model.onnx.data": b"weights"
    }  # fmt: skip


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), staged(tmp_path / "model.onnx") as part:
        publish(part, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_by_force(tmp_path):
    path = tmp_path / "model.onnx"
    check_free(path, force=False)
    path.touch()
    check_free(path, force=True)
    with pytest.raises(UsageError, match="exists"):
        check_free(path, force=False)
