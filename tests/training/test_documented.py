"""docs/fit.md is a walk-through that is walked."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from hilm.cli.main import main
from hilm.training.methods import METHODS
from tests.hub_server import GOOD
from tests.training.models import rows_for, write_rows

TEXT = (Path(__file__).parents[2] / "docs" / "fit.md").read_text()


def test_the_walk(models, tmp_path, monkeypatch, capsys, local_hub):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / "llama", "base")
    write_rows(tmp_path / "rows.jsonl", rows_for("sft"))
    (config,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    Path("config.yaml").write_text(config)
    lines = "".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).splitlines()
    *local, pushed = lines
    local_hub.reach(monkeypatch, tmp_path / "hub", GOOD)
    assert pushed.startswith("hilm push")
    printed = {}
    for line in local:
        assert main([*shlex.split(line)[1:], "--json"]) == 0, (line, capsys.readouterr().err)
        printed[line] = json.loads(capsys.readouterr().out)
    fitted = next(document for line, document in printed.items() if "train.steps" in line)
    assert fitted["parent"] == "acme/tiny-llama"
    found = next(document for line, document in printed.items() if line.startswith("hilm search"))
    assert (found["matches"][0]["model"], found["matches"][0]["relation"]) == ("base", "fine-tune")
    assert main([*shlex.split(pushed)[1:], "--json"]) == 0, capsys.readouterr().err
    assert "adapter_model.safetensors" in str(json.loads(capsys.readouterr().out)["files"])
    for name in ("loss.png", "difference.png", "report/lineage.json"):
        assert (tmp_path / "runs" / "support" / name).is_file()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_there(name):
    assert f"`{name}`" in TEXT


def test_every_finding_is_there():
    folder = Path(__file__).parents[2] / "src" / "hilm" / "training"
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    assert set(re.findall(r"E-[A-Z0-9-]*[A-Z0-9]", source)) == set(re.findall(r"E-[A-Z0-9-]*[A-Z0-9]", TEXT))
