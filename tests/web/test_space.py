from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hilm.errors import UsageError
from hilm.store import Store
from hilm.web.space import export_space
from tests.web.conftest import ask, call


@pytest.fixture
def space(house, tmp_path):
    assert export_space(Store(house / "store"), tmp_path / "space")["models"] == 3
    return tmp_path / "space"


def test_a_space_names_nothing_of_this_machine(space, house):
    for path in space.rglob("*"):
        assert path.is_dir() or str(house).encode() not in path.read_bytes(), path
    assert not list((space / "store" / "reels").iterdir())
    readme = (space / "README.md").read_text()
    assert readme.startswith("---\ntitle: hilm\n")
    assert "sdk: gradio\n" in readme
    assert "gradio==" in (space / "requirements.txt").read_text()


def test_a_space_starts_from_its_own_folder(space, monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    environment = {**os.environ, "PORT": "0"}
    with subprocess.Popen(
        [sys.executable, "-u", "app.py"], cwd=space, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            address = process.stdout.readline().strip().rstrip("/")
            assert address.startswith("http://127.0.0.1:")
            assert ">tuned<" in call(address, "library", "", "name")[0]
            assert "fine-tune" in call(address, "search", "tuned", "hybrid", 5)[0]
            assert ask(address, "/film?model=base").status == 404
        finally:
            process.terminate()


def test_what_is_no_space(house, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="not an empty folder"):
        export_space(Store(house / "store"), tmp_path / "full")
    with pytest.raises(UsageError, match="0 models"):
        export_space(Store(tmp_path / "nothing"), tmp_path / "space")
    assert not (tmp_path / "space").exists()
