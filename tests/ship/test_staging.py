from __future__ import annotations

import pytest
import torch

from hilm import errors
from hilm.models.resnet_bk import ResNetBKForCausalLM, create_resnet_bk_for_hf
from hilm.ship import pull, push
from tests.ship.cards import good


def test_what_is_private_stays_at_home(online, tmp_path):
    folder = good(tmp_path / "it", "someone/it")
    for name in ("training_args.bin", "optimizer.pt", ".env", "checkpoint-5/model.safetensors", "notes.log"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    done = push(folder, "someone/it")
    assert len(done["left_out"]) == 5
    assert set(online.repositories["models", "someone/it"].files) == {
        ".gitattributes", "README.md", "config.json", "model.safetensors"
    }  # fmt: skip


def test_files_can_go_beside_it(online, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"graph")
    push(good(tmp_path / "it", "someone/it"), "someone/it", also=[tmp_path / "graph.onnx"])
    assert online.repositories["models", "someone/it"].files["graph.onnx"] == b"graph"


def test_nothing_to_publish(online, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in ("empty", "absent"):
        with pytest.raises(errors.InputError):
            push(tmp_path / path, "someone/it")


def test_resnet_bk_from_a_pytorch_file(online, tmp_path):
    model = create_resnet_bk_for_hf("1M", vocab_size=60)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "resnet_bk_1m.pt")
    push(tmp_path / "resnet_bk_1m.pt", "someone/bk", model_size="1M")
    loaded = ResNetBKForCausalLM.from_pretrained(pull("someone/bk")["path"])
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    for size, kind in (("10M", errors.ConversionError), (None, errors.UsageError)):
        with pytest.raises(kind):
            push(tmp_path / "resnet_bk_1m.pt", "someone/other", model_size=size)
