"""The guide to export runs, block by block."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "export.md"


def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    seen = {}
    for block in blocks:
        exec(compile(block, "export.md", "exec"), seen)
    assert len(blocks) == 5
    assert seen["report"].ok
    assert "ok=True" in capsys.readouterr().out
    assert {"model.onnx", "optimized.onnx", "step.onnx", "deployment"} <= {p.name for p in tmp_path.iterdir()}
