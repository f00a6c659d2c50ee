from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "01_look_inside.py": [
        r"^22,713,216 parameters in 104 tensors$",
        r"^  embedding +11,9\d\d,\d{3}$",
        r"^22,713,216 values read, at most \d+ MiB taken$",
        r"^  mlp +mean [+-]0\.\d{4}  std 0\.\d{4}  max \d\.\d{3}$",
        r"^largest attention weight: \d\.\d{3}$",
    ],
    "02_find_relatives.py": [r": pruned \(z \d\d\.\d, p \d\.\de-\d{3}\)$", r" with 50% set to zero "],
    "03_archive_and_verify.py": [
        r"\.mp4: 2\d\.\d\d bits a weight$",
        r"^[1-9]\d+ parts checked, 0 bad$",
        r"^104 tensors restored to .*, same bits: True$",
        r"^embeddings\.word_embeddings\.weight: equal True$",
    ],
    "04_encode_while_streaming.py": [r"^100,000 values in 72 frames: True$"],
    "hf_integration_demo.py": [
        r"^1M: 716,812 parameters with a vocabulary of bytes$",
        r"^\d\d tokens, 5,120 bytes of state$",
        r"^logits \(1, 128, 30000\)$",
        r"^graph: at most \de-\d\d from PyTorch$",
        r"^(no engine: .*pip install tensorrt|engine agrees: True)",
        r"^deployment: model\.onnx step\.onnx$",
    ],
}


def test_every_example_is_listed_and_short():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(SAYS)
    for name in SAYS:
        assert len((EXAMPLES / name).read_text("utf-8").splitlines()) <= 44, name


@pytest.mark.parametrize("name", SAYS)
def test_examples_run_and_say_the_truth(name, tmp_path):
    source = str(EXAMPLES.parent / "src")
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", source)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in SAYS[name]:
        assert re.search(line, done.stdout, re.MULTILINE), (line, done.stdout)


def test_the_notebook_runs_and_shows_tables(tmp_path, monkeypatch):
    """Cells are run as a notebook would: the last expression is shown, as HTML where it has any."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    shown: list[str] = []
    names = {"display": lambda thing: shown.append(thing._repr_html_())}
    cells = json.loads((EXAMPLES / "colab.ipynb").read_text("utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []
        tree = ast.parse("".join(cell["source"]))
        last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "colab.ipynb", "exec"), names)
        if last is not None:
            value = eval(compile(last, "colab.ipynb", "eval"), names)
            shown += [value._repr_html_()] if hasattr(value, "_repr_html_") else []
    checkpoint, listed, matches, difference, verified = shown
    assert "embed_tokens.weight" in checkpoint
    assert "stranger" in listed
    assert "fine-tune" in matches
    assert "fine-tune" in difference
    assert ">ok</th><td>yes<" in verified
