"""Every command as a process of its own: exit code, one JSON document on stdout, errors as two lines."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

GOOD = [
    (["inspect", "base"], {"model", "parameters", "tensors", "roles", "files"}),
    (
        ["stream", "base", "--max-params", "100"],
        {"model_name", "processed_parameters", "peak_memory_mb", "layers"},
    ),
    (["encode", "base", "nowhere"], {"models", "failed"}),
    (["decode", "base", "out"], {"out", "tensors", "sha256_ok"}),
    (["verify", "base", "--against", "base"], {"ok", "checked", "bad", "max_abs", "nmse"}),
    (["report", "base"], {"reels", "picture"}),
    (["index", "stranger"], {"indexed", "skipped", "failed"}),
    (["search", "tuned"], {"query", "method", "matches"}),
    (["diff", "base", "tuned"], {"relation", "p_value", "score", "tensors", "details"}),
    (["lineage"], {"query", "nodes", "edges", "hints"}),
    (["lineage", "tuned"], {"query", "nodes", "edges", "hints"}),
    (["dedupe"], {"exact", "near", "exact_bytes", "near_bytes"}),
    (["list"], {"models"}),
    (["stats"], {"models", "parameters", "reel_bytes"}),
    (["show", "base"], {"model", "reel", "roles"}),
    (["rm", "base"], {"removed", "deleted_reels"}),
]
BAD = [
    (["inspect", "./nowhere"], 2),
    (["stream", "base", "--layers", "atention"], 2),
    (["encode", "./nowhere"], 2),
    (["encode", "nowhere"], 2),
    (["encode", "org/nowhere"], 5),
    (["encode", "base", "--storage-dir", "stranger"], 2),
    (["decode", "nowhere", "out"], 2),
    (["verify", "base/model.safetensors"], 2),
    (["report", "base/model.safetensors"], 2),
    (["index", "stranger/../nowhere"], 2),
    (["search", "./nowhere"], 2),
    (["diff", "base", "./nowhere"], 2),
    (["lineage", "./nowhere"], 2),
    (["lineage", "base", "--storage-dir", "stranger"], 2),
    (["show", "nobody"], 2),
    (["rm", "nobody"], 2),
    (["list", "--storage-dir", "base"], 2),
    (["stats", "--storage-dir", "base/model.safetensors"], 2),
]


def run(words):
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from hilm.cli.main import main; sys.exit(main())",
            *words,
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_every_command_prints_one_document(house):
    for words, keys in GOOD:
        ran = run(words)
        assert ran.returncode == 0, (words, ran.stderr)
        assert json.loads(ran.stdout).keys() >= keys, words
        assert ran.stderr == "" or words[-1] == "nowhere"


@pytest.mark.parametrize(
    ("words", "code"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_two_lines_and_nothing_else(house, words, code):
    ran = run(words)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert [line.partition(": ")[0] for line in ran.stderr.splitlines()] == ["error", "hint"]
    assert not (house / "out").exists()


def test_a_reel_that_is_not_what_was_filmed_is_a_document_and_exit_3(house):
    made = json.loads(run(["encode", "base"]).stdout)["models"][0]
    ran = run(["verify", made["reel"], "--against", "stranger"])
    assert ran.returncode == 3
    assert json.loads(ran.stdout)["ok"] is False
