from __future__ import annotations

import json
import re
from importlib import metadata

import pytest

from hilm.cli.main import main
from hilm.inference import machine


def test_what_is_installed_here(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    found = machine.examine(tmp_path, offline=True)
    versions = {package["name"]: package["version"] for package in found["packages"]}
    assert versions["numpy"] == metadata.version("numpy")
    assert found["caches"]["store"] == 5
    assert found["hub"]["reachable"] is None
    assert found["ok"] == (not found["problems"])


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (['numpy>=99; extra == "torch"'], "numpy .* is not >=99"),
        (["numpy>=2.0"], ""),
        (['not-there-at-all>=1; extra == "web"'], ""),
        (["not-there-at-all>=1"], "not-there-at-all None is not >=1"),
    ],
)
def test_versions_out_of_range(lines, problem, tmp_path, monkeypatch):
    real = metadata.requires
    monkeypatch.setattr(metadata, "requires", lambda name: lines if name == "hilm" else real(name))
    problems = machine.examine(tmp_path, offline=True)["problems"]
    assert [re.search(problem, p) is not None for p in problems] == [True] * bool(problem)


def test_a_hub_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert machine.examine(tmp_path)["hub"] | {"token": None} == {
        "endpoint": "http://127.0.0.1:9", "reachable": False, "token": None,
    }  # fmt: skip


def test_commands(capsys, tmp_path):
    assert main(["guide", "--goal", "align", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"][0]["library"] == "TRL + PEFT"
    assert main(["guide"]) == 0
    assert "hilm data preview" in capsys.readouterr().out
    assert main(["guide", "--goal", "dream"]) == 2
    assert "finetune" in capsys.readouterr().err
    code = main(["doctor", "--offline", "--json", "--storage-dir", str(tmp_path)])
    document = json.loads(capsys.readouterr().out)
    assert code == (0 if document["ok"] else 3)
    assert main(["doctor", "--offline", "--storage-dir", str(tmp_path)]) == code
    assert "not asked" in capsys.readouterr().out
