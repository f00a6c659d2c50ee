"""What docs/hub.md shows is run, against a Hub on this machine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hilm.cli.main import main
from hilm.ship.card_rules import RULES
from tests.ship.cards import CONFIG, TENSORS
from tests.tiny import write_model

TEXT = (Path(__file__).parent.parent / "docs" / "hub.md").read_text()


def test_the_commands_run_in_this_order(online, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "my-model", TENSORS, config=CONFIG)
    (block,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines():
        _, *words = shlex.split(line)
        assert main(words) == 0, (line, capsys.readouterr().err)
    assert "1 indexed" in capsys.readouterr().out
    assert (tmp_path / "copy" / "model.safetensors").is_file()


def test_every_rule_is_listed():
    listed = set(re.findall(r"\bC\d\d\b", TEXT.partition("## Card")[2]))
    assert listed == {f"C{number:02d}" for number in range(1, 21)} >= {rule for rule, *_ in RULES}
