"""Two processes that share a model's weights compute what one does."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from hilm.models.resnet_bk import ResNetBKForCausalLM
from tests.models.resnet_bk.tiny import SWITCHES, logits, model, tokens

RANK = """
import sys, torch
from transformers.distributed import DistributedConfig
from hilm.models.resnet_bk import ResNetBKForCausalLM
torch.set_num_threads(1)
folder = sys.argv[1]
made = ResNetBKForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=2)).eval()
ids = torch.load(f"{folder}/ids.pt")
with torch.no_grad():
    logits = made(ids).logits
made.train()(ids, labels=ids).loss.backward()
gradient = made.model.layers[0].mixer.eta_raw.grad
written = made.eval().generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
if torch.distributed.get_rank() == 0:
    torch.save((logits, gradient, written), f"{folder}/out.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_rule_of_the_plan_names_a_part(switch):
    made = model(**SWITCHES[switch])
    parts = {name for name, _ in (*made.named_modules(), *made.named_parameters())}
    generic = {re.sub(r"\.\d+", ".*", part) for part in parts}
    assert set(made.tp_plan) <= generic
    assert ("model.layers.*.mixer.v_proj" in made.tp_plan) is (switch not in {"scattering", "act"})


def test_an_operator_is_not_divided():
    with pytest.raises(ValueError, match="bk_channels is 4; 3 processes"):
        ResNetBKForCausalLM.maybe_distribute_model(model(), SimpleNamespace(tp_size=3), None)


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["plain", "low-rank", "birman-schwinger", "act"])
def test_two_processes_compute_what_one_does(switch, tmp_path):
    made, ids = model(**SWITCHES[switch]), tokens(2, 9)
    made.save_pretrained(tmp_path)
    torch.save(ids, tmp_path / "ids.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, tmp_path], stderr=subprocess.PIPE, text=True,
            env=os.environ | place | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip
    messages = [rank.communicate(timeout=200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], messages
    apart, gradient, written = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(apart, logits(made, ids), atol=1e-5, rtol=1e-5)
    made.train()(ids, labels=ids).loss.backward()
    torch.testing.assert_close(gradient, made.model.layers[0].mixer.eta_raw.grad, atol=1e-5, rtol=1e-3)
    assert torch.equal(
        written, made.eval().generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    )
