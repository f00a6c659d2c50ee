"""To and from a Hub on this machine, as a user types it; and no token anywhere."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hilm.cli.main import main
from hilm.models.resnet_bk import create_resnet_bk_for_hf
from tests.hub_server import GOOD
from tests.ship.cards import CONFIG, TENSORS, good
from tests.tiny import write_model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return good(tmp_path / "it", "someone/it", shards=3)


def test_push_twice_and_pull(online, folder, capsys):
    assert main(["push", "it", "someone/it", "--dry-run"]) == 0
    assert "nothing was sent" in capsys.readouterr().out
    assert not online.writes()
    assert main(["push", "it", "someone/it", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pushed"] == 6
    assert main(["push", "it", "someone/it"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["pull", "someone/it", "--local-dir", "back", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["files"]) == 7
    assert (folder.parent / "back" / "model-00003-of-00003.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["push"], 2),
        (["push", "it"], 2),
        (["push", "absent", "someone/it"], 2),
        (["push", "it", "not a name"], 2),
        (["push", "it", "someone/other"], 2),
        (["push", "it", "someone/it", "--public", "--no-card-check"], 2),
        (["push", "it", "stranger/it", "--force"], 5),
        (["pull", "someone/none"], 5),
        (["card", "check", "it", "--repo-id", "someone/other"], 3),
        (["card", "check", "it"], 0),
        (["card", "check", "absent"], 2),
        (["card", "build", "it", "someone/it"], 0),
        (["card", "diff", "it", "it"], 0),
    ],
)
def test_exit_codes(online, folder, capsys, words, code):
    assert main(words) == code
    captured = capsys.readouterr()
    assert bool(captured.out) == (code in {0, 3})
    assert ("error:" in captured.err) == (code not in {0, 3})


def test_login_whoami_logout(local_hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", (tmp_path / "in").open("w+"))
    sys.stdin.write(f"{GOOD}\n")
    sys.stdin.seek(0)
    assert main(["whoami"]) == 5
    assert main(["login", "--token", "-"]) == 0
    sys.stdin.close()
    stored = tmp_path / "hub_home" / "token"
    assert stored.read_text() == GOOD
    assert stored.stat().st_mode & 0o777 == 0o600
    assert main(["whoami", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :]) == {"name": "someone", "role": "write", "organisations": ["org"]}
    assert main(["logout"]) == main(["logout"]) == 0
    assert not stored.exists()
    assert main(["login", "--token", "hf_rejectedTokenOfNobody"]) == 5
    assert not stored.exists()


def test_documented_uploads(online, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    model = create_resnet_bk_for_hf("1M", vocab_size=60)
    torch.save(model.state_dict(), "checkpoints/resnet_bk_1m.pt")
    one = (
        "push --model_path checkpoints/resnet_bk_1m.pt --repo_id someone/resnet-bk-1m --model_size 1M --token"
    )
    assert main([*one.split(), GOOD]) == 0
    batch = "push --batch --checkpoint_dir checkpoints/ --repo_prefix someone/resnet-bk --token"
    assert main([*batch.split(), GOOD]) == 0
    captured = capsys.readouterr()
    assert "shell's history" in captured.err
    assert "nothing to do" in captured.out
    assert GOOD not in captured.out + captured.err
    assert set(online.repositories) == {("models", "someone/resnet-bk-1m")}


LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("someone/bk", trust_remote_code=True)
hub = torch.hub.load(sys.argv[1], "resnet_bk_1m", source="local", pretrained=True, repo_id="someone/bk")
print(torch.equal(model.lm_head.weight, hub.lm_head.weight), model.lm_head.weight.shape[0])
"""


@pytest.mark.timeout(200)
def test_what_was_pushed_is_loaded_by_its_id(online, tmp_path):
    torch.save(create_resnet_bk_for_hf("1M", vocab_size=60).state_dict(), tmp_path / "bk.pt")
    assert main(["push", str(tmp_path / "bk.pt"), "someone/bk", "--model-size", "1M"]) == 0
    environment = os.environ | online.environment(tmp_path / "fresh", GOOD) | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", LOAD, str(Path(__file__).parents[2])]
    loaded = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert loaded.stdout.split() == ["True", "60"], loaded.stderr
    assert GOOD not in loaded.stdout + loaded.stderr


@pytest.mark.parametrize(
    "fault",
    [
        {"path": "/commit/", "status": 401}, {"path": "/commit/", "status": 500, "times": 99},
        {"path": "/lfs/", "status": 403, "times": 99}, {"path": "whoami|/revision/", "status": 400},
        {"path": "create", "kind": "reset", "times": 99},
    ],
)  # fmt: skip
def test_no_token_in_any_output(online, folder, capsys, caplog, monkeypatch, fault):
    monkeypatch.setenv("HILM_DEBUG", "1")
    online.fail(**fault)
    with caplog.at_level(logging.DEBUG):
        assert main(["push", "it", "someone/it"]) == 5
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert GOOD not in captured.out + captured.err + caplog.text
    assert "signature=" not in captured.err.partition("error:")[2]


def test_a_batch_with_one_failure(online, tmp_path, capsys):
    write_model(tmp_path / "c" / "a", TENSORS, config=CONFIG)
    good(tmp_path / "c" / "b", "someone/else")
    assert (
        main(["push", "--batch", "--checkpoint-dir", str(tmp_path / "c"), "--repo-prefix", "someone/m"]) == 2
    )
    captured = capsys.readouterr()
    assert "someone/m-a" in captured.out
    assert "C19" in captured.err


def test_an_empty_stdin_is_no_token(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["whoami", "--token", "-"]) == 2
    assert "no token on stdin" in capsys.readouterr().err
