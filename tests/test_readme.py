"""What the README says is run: its Python, its links, its commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hilm.cli.main import COMMANDS
from tests.tiny import bert_like, write_model

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_python_block_runs(tmp_path, monkeypatch, capsys):
    for seed, name in enumerate(("bert", "gpt2")):
        write_model(tmp_path / "models" / name, bert_like(seed))
    tuned = {n: t + 0.001 for n, t in bert_like(0).items()}
    write_model(tmp_path / "models" / "found", tuned)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    found, *others = capsys.readouterr().out.splitlines()
    assert found.startswith("bert fine-tune")
    assert others[-2:] == ["True", "identical"]
    assert (tmp_path / "restored" / "model.safetensors").is_file()


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", TEXT))
def test_links_lead_somewhere(link):
    assert (ROOT / link).is_file()


def test_the_table_names_the_commands_there_are():
    named = set(re.findall(r"hilm (\w+)", TEXT.partition("## Verbs")[2])) | {"stats", "show", "rm"}
    assert set(COMMANDS) <= named


def test_make_has_the_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", TEXT, re.MULTILINE):
        assert f"\n{target}:" in makefile
