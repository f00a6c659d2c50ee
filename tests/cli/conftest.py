from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from hilm.cli.main import main
from tests.tiny import bert_like, write_model


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Two related checkpoints and a stranger, in the current folder."""
    monkeypatch.chdir(tmp_path)
    base = bert_like(1, layers=2)
    random = np.random.default_rng(7)
    write_model(tmp_path / "base", base)
    write_model(
        tmp_path / "tuned",
        {n: v + 0.001 * random.standard_normal(v.shape, np.float32) for n, v in base.items()},
    )
    write_model(tmp_path / "stranger", bert_like(2, layers=2))
    return tmp_path


@pytest.fixture
def hilm(house, capsys):
    """Run a command line in the house."""

    def run(*words):
        capsys.readouterr()
        code = main(list(words))
        captured = capsys.readouterr()
        document = json.loads(captured.out) if "--json" in words and captured.out else None
        return SimpleNamespace(code=code, out=captured.out, err=captured.err, document=document)

    return run
