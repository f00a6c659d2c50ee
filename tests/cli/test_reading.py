from __future__ import annotations

import json
import re
import signal

import click
import pytest

from hilm.cli.reading import bar, inspected, streamed
from tests.store.conftest import start
from tests.tiny import bert_like, write_sparse


def checkpoint(tensors=3, files=1):
    return {
        "model": "tiny\x1bbert",
        "parameters": 4 * tensors,
        "tensors": [
            {"name": f"layer.{i}.weight", "shape": [2, 2], "dtype": "F32", "role": "mlp", "bytes": 16}
            for i in range(tensors)
        ],
        "roles": {"mlp": 4 * tensors},
        "files": [{"name": f"{i}.safetensors"} for i in range(files)],
        "notes": [],
    }


def test_inspect_shows_roles_by_size_then_tensors():
    document = {**checkpoint(), "parameters": 40, "roles": {"mlp": 12, "attention": 28}}
    document["tensors"].append({"name": "scale", "shape": [], "dtype": "BF16", "role": "other", "bytes": 2})
    lines = click.unstyle(inspected(document, everything=False)).splitlines()
    assert lines[0] == "tiny\ufffdbert: 40 parameters in 4 tensors, 50 B"
    assert [line.split()[0] for line in lines[2:5]] == ["role", "attention", "mlp"]
    assert lines[3].split()[1:4] == ["28", "70.0", "%"]
    assert lines[7].split() == [
        "layer.0.weight",
        "2",
        "\N{MULTIPLICATION SIGN}",
        "2",
        "F32",
        "mlp",
        "16",
        "B",
    ]
    assert lines[-1].split() == ["scale", "scalar", "BF16", "other", "2", "B"]


@pytest.mark.parametrize(("everything", "shown"), [(False, 20), (True, 103)])
def test_inspect_cuts_a_long_list_and_says_so(everything, shown):
    text = inspected(checkpoint(tensors=103, files=2), everything=everything)
    assert text.count("layer.") == shown
    assert ("… and 83 more (--all lists them)" in text) is not everything
    assert "in 2 files" in text


def test_inspect_ends_with_what_is_odd_about_the_checkpoint():
    text = inspected({**checkpoint(), "notes": ["a.bin\x1b is not read"]}, everything=False)
    assert text.splitlines()[-2:] == ["", "note: a.bin\ufffd is not read"]


def test_bar():
    assert bar(1, 2) == "█" * 12
    assert bar(0, 0) == ""


def test_stream_shows_speed_memory_and_layers():
    layer = {
        "parameters": 1000,
        "mean": 1e-9,
        "std": 0.04,
        "min": -1.0,
        "max": None,
        "zeros": 5,
        "outliers": 7,
    }
    document = {
        "model_name": "tiny",
        "progress_percent": 50.0,
        "processed_parameters": 1000,
        "total_parameters": 2000,
        "chunks": 4,
        "processing_rate": 12_500_000.0,
        "elapsed_time": 61.2,
        "memory_usage_mb": 100.0,
        "current_layer": "x",
        "peak_memory_mb": 2048.4,
        "layers": {"attention": layer},
    }
    lines = click.unstyle(streamed(document)).splitlines()
    assert lines[2] == "read         1,000 of 2,000 parameters (50.0 %)"
    assert lines[4] == "time         1 min 01 s, 12.5 M parameters a second"
    assert lines[5] == "peak memory  2,048 MB"
    assert lines[-1].split() == ["attention", "1,000", "1e-09", "0.04", "-1", "-", "0.5", "%", "7"]
    tensors = [layer | {"name": "encoder.0"}, layer | {"name": "bad\x1bname"}]
    shown = click.unstyle(streamed(document | {"per_layer": tensors})).splitlines()
    assert [line.split()[0] for line in shown[-3:]] == ["tensor", "encoder.0", "bad\ufffdname"]


def test_inspect_of_a_checkpoint(hilm):
    ran = hilm("inspect", "base", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.document["parameters"] == sum(value.size for value in bert_like(1, layers=2).values())
    assert sum(ran.document["roles"].values()) == ran.document["parameters"]
    assert {"name", "shape", "dtype", "role", "bytes"} <= ran.document["tensors"][0].keys()
    assert "encoder.layer.0.intermediate.dense.weight" in hilm("inspect", "base").out


def test_inspect_of_nothing_is_bad_input(hilm, house):
    (house / "empty").mkdir()
    for target, code in (("empty", 2), ("./nowhere", 2), ("nowhere", 2), ("org/nowhere", 5)):
        ran = hilm("inspect", target, "--json")
        assert (ran.code, ran.out) == (code, "")
        assert ran.err.startswith("error: ")
        assert "\nhint: " in ran.err


ROOM = ("--max-memory", "1000000")  # whatever tests before these have left in memory


def test_stream_of_some_layers(hilm):
    ran = hilm("stream", "base", "--layers", "attention", "mlp", "--chunk-size", "500", *ROOM, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert set(ran.document["layers"]) == {"attention", "mlp"}
    assert ran.document["processed_parameters"] == sum(
        layer["parameters"] for layer in ran.document["layers"].values()
    )
    assert "peak memory" in hilm("stream", "base").out


def test_stream_refuses_layers_there_are_none_of(hilm):
    ran = hilm("stream", "base", "--layers", "attenton")
    assert (ran.code, ran.out) == (2, "")
    assert "attention" in ran.err


def test_stream_shows_every_tensor_when_asked(hilm):
    document = hilm("stream", "base", "--per-layer", "--json").document
    assert [tensor["name"] for tensor in document["per_layer"]] == list(bert_like(1, layers=2))
    assert "per_layer" not in hilm("stream", "base", "--json").document


NINE = [
    "model_name", "progress_percent", "processed_parameters", "total_parameters", "chunks_encoded",
    "processing_rate", "elapsed_time", "memory_usage_mb", "current_layer",
]  # fmt: skip


def test_stream_that_is_followed_prints_lines_and_at_last_the_document(hilm, house):
    write_sparse(house / "big", (200_000, 1024))
    ran = hilm("stream", "big", "--follow", "--max-memory", "1")
    *lines, document = map(json.loads, ran.out.splitlines())
    assert lines
    percents = [line["progress_percent"] for line in lines]
    assert percents == sorted(percents)
    assert all(list(line) == [*NINE, "eta_seconds"] for line in lines)
    assert len(lines) <= document["elapsed_time"] / 0.1 + 1
    assert document["layers"]["other"]["zeros"] == 200_000 * 1024
    assert {*NINE, "peak_memory_mb", "layers"} <= document.keys()
    assert ran.err.startswith("note: limit-below-baseline: of 1 MiB, ")


def test_stream_shows_rate_and_memory_on_a_terminal(hilm, house, monkeypatch):
    write_sparse(house / "big", (300_000, 1024))
    monkeypatch.setattr("_pytest.capture.CaptureIO.isatty", lambda _: True, raising=False)
    ran = hilm("stream", "big", *ROOM)
    assert re.search(r"w +\d+ % \|.*\| 00:0\d, .* to go, [\d.,]+ M/s, [\d,]+ MB", ran.err)


def test_an_interrupted_stream_says_so(house):
    write_sparse(house / "big", (16 << 20, 1024))
    process = start("stream", house / "big", "--follow")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.strip().splitlines()[0] == "error: interrupted"
    assert "Traceback" not in err
