from __future__ import annotations

import sys

import psutil
from transformers import AutoModelForCausalLM, AutoTokenizer


def test_a_new_model_loads(hilm, tmp_path):
    run = hilm("model", "new", "--size", "1m", str(tmp_path / "new"), "--json")
    assert run.code == 0
    assert run.document == {
        "label": "1M",
        "parameters": 8_298_508,
        "active_parameters": 8_101_900,
        "path": str(tmp_path / "new"),
    }
    assert run.err == ""
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "new").num_parameters() == 8_298_508
    assert len(AutoTokenizer.from_pretrained(tmp_path / "new")("bytes").input_ids) == 5
    assert hilm("inspect", str(tmp_path / "new"), "--json").document["parameters"] == 8_298_508
    again = hilm("model", "new", str(tmp_path / "new"))
    assert (again.code, again.out) == (2, "")
    assert "exists" in again.err


def test_what_a_person_reads(hilm, tmp_path):
    run = hilm("model", "new", str(tmp_path / "new"))
    assert "8.3 M" in run.out
    assert "8.1 M" in run.out


def test_unknown_sizes_missing_torch_and_too_little_memory(hilm, tmp_path, monkeypatch):
    out = str(tmp_path / "new")
    assert hilm("model", "new", "--size", "2M", out).code == 2
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    short = hilm("model", "new", out)
    assert (short.code, "31.7 MiB" in short.err) == (1, True)
    for name in [name for name in sys.modules if name.startswith("hilm.models.resnet_bk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    missing = hilm("model", "new", out)
    assert missing.code == 4
    assert 'pip install "hilm[torch]"' in missing.err
    assert not (tmp_path / "new").exists()
