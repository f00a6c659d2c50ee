from __future__ import annotations

import json

import pytest

from hilm.errors import UsageError
from hilm.inference.guide import GOALS, guide
from hilm.inference.machine import Machine
from tests.tiny import bert_like, write_model, write_sparse

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "hidden_size": 64, "vocab_size": 100,
    "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip


def test_the_tree_of_the_documentation():
    libraries = [answer["library"] for answer in guide()["answers"]]
    assert libraries[:3] == ["Hub", "datasets", "Transformers (pipelines)"]
    assert libraries[3:] == ["Transformers + Accelerate", "TRL + PEFT", "Accelerate"]
    assert [answer["goal"] for answer in guide()["answers"]] == list(GOALS)
    with pytest.raises(UsageError, match="dream"):
        guide("dream")


def test_the_way_to_train_is_the_first_that_fits(tmp_path):
    model = str(write_model(tmp_path / "small", bert_like(0), config=CONFIG))
    ways = {w["method"]: w["bytes"] for w in guide("finetune", model)["ways"]}
    assert ways["full"] > ways["lora"] > ways["qlora"]
    for method, memory in ways.items():
        assert guide("finetune", model, machine=Machine("cpu", 1, memory))["peft"] == method
    nothing = guide("finetune", model, machine=Machine("cpu", 1, ways["qlora"] - 1))
    assert nothing["peft"] is None
    large = guide("finetune", model, machine=Machine("cpu", 1, 10**12))["answers"][0]
    assert large["library"] == "Transformers + Accelerate"
    assert "peft.kind=full" in large["command"]
    assert "hilm run text-generation" in guide("infer", model)["answers"][0]["command"]


@pytest.mark.parametrize(("columns", "peft"), [(1, "lora"), (8, "qlora")])
def test_large_models_are_advised_parts(tmp_path, columns, peft):
    folder = write_sparse(tmp_path / "large", (1 << 20, 1 << 10 if columns == 1 else columns << 10))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    machine = Machine("cuda", 4, 1 << 50)
    document = guide("finetune", str(folder), machine=machine)
    assert document["peft"] == peft
    assert document["answers"][0]["library"] == "PEFT + Accelerate"
    assert "--nproc 4" in guide("distribute", str(folder), machine=machine)["answers"][0]["command"]
