"""Every documented command line, as docs/requirements.md maps it, is run."""

from __future__ import annotations

import json
import pkgutil
import re
import shlex
from pathlib import Path

import click
import pytest
import torch

from hilm.cli.main import hilm, main
from hilm.models.resnet_bk import PRESETS, create_resnet_bk_for_hf
from tests.hub_server import ROLES
from tests.tiny import bert_like, write_model

DOCUMENT = Path(__file__).parent.parent / "docs" / "requirements.md"
ROWS = re.findall(r"^\| `(\S+\.py [^`]*)` \| `hilm ([^`]*)` \|$", DOCUMENT.read_text(), re.MULTILINE)
MODELS = (
    *("bert-base-uncased", "gpt2", "roberta-base", "bert-large-uncased", "distilbert-base-uncased"),
    *("albert-base-v2", "gpt2-large", "bert-large"),
)
ROOT = DOCUMENT.parent.parent
NAMED = sorted(set(re.findall(r"`([^`\n]+)`", DOCUMENT.read_text().partition("## Every promise")[2])))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(MODELS):
        write_model(folder / name, bert_like(seed), config={"model_type": "bert"})
    return folder


def test_the_table_holds_the_documented_lines():
    assert len(ROWS) == 33
    flags = set(re.findall(r"--[\w-]+", " ".join(documented for documented, _ in ROWS)))
    promised = (
        "--models --max-params --search-similar --search-method --list-models --statistics --storage-dir "
        "--model --stream --chunk-size --layers --max-memory"
    )
    assert flags.issuperset(promised.split())


@pytest.mark.parametrize("line", [name for name in NAMED if name.startswith("hilm ")])
def test_commands_and_flags_are_there(line):
    command, words = hilm, line.split()[1:]
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    assert command is not None
    flags = {flag for part in command.params for flag in (*part.opts, *part.secondary_opts)}
    assert {word.replace("_", "-") for word in words if word.startswith("--")} <= flags


@pytest.mark.parametrize("name", [name for name in NAMED if re.fullmatch(r"hilm(\.\w+)+", name)])
def test_functions_are_there(name):
    assert pkgutil.resolve_name(name)


def test_files_are_there():
    tests = [name for name in NAMED if re.fullmatch(r"(\w+/)*test_\w+", name)]
    scripts = [name for name in NAMED if name.endswith(".py")]
    assert len(tests) > 80
    assert [n for n in tests if not (ROOT / "tests" / f"{n}.py").is_file()] == []
    assert [n for n in scripts if not (ROOT / n).is_file()] == []


@pytest.fixture
def username(local_hub, monkeypatch, tmp_path):
    """A folder of checkpoints, and a Hub that knows the guide's user and token; 1B is a 1M in disguise."""
    local_hub.owner = "username"
    monkeypatch.setitem(ROLES, "YOUR_HF_TOKEN", "write")
    monkeypatch.setitem(PRESETS, "1B", PRESETS["1M"])
    (tmp_path / "checkpoints").mkdir()
    weights = create_resnet_bk_for_hf("1M", vocab_size=60).state_dict()
    torch.save(weights, tmp_path / "checkpoints" / "resnet_bk_1b.pt")
    monkeypatch.chdir(tmp_path)
    return local_hub


@pytest.mark.parametrize("line", [line for _, line in ROWS if line.startswith("push")])
def test_documented_uploads_work(line, username, capsys):
    assert main([*shlex.split(line), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    files = username.repositories["models", "username/resnet-bk-1b"].files
    assert {"model.safetensors", "config.json", "modeling_resnet_bk.py", "README.md"} <= files.keys()


LOCAL = [row for row in ROWS if not row[1].startswith("push")]


@pytest.mark.parametrize(("documented", "line"), LOCAL, ids=[line for _, line in LOCAL])
def test_documented_lines_work(documented, line, folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HILM_HOME", str(tmp_path / "home"))
    words = shlex.split(line)
    if "search" in line:
        assert main(["index", *MODELS]) == 0
        capsys.readouterr()
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    if "search" in line:
        assert document["query"] in documented
        assert all(match["relation"] == "independent" for match in document["matches"])
    if "encode" in line or "--models" in line:
        assert not document["failed"]
        assert all(Path(model["reel"]).is_file() for model in document["models"])


def test_downloads_say_that_they_need_the_hub(capsys):
    assert main(["--download-popular", "--max-params", "25000"]) == 5
    assert "Hub" in capsys.readouterr().err
