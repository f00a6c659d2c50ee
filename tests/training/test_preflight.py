"""Each finding: one run that has it, and the same run put right."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import transformers

from hilm.errors import InputError, MissingExtra, UsageError
from hilm.training import budget
from hilm.training import preflight as room
from hilm.training.budget import count_adapter
from hilm.training.config import from_document
from hilm.training.preflight import check, look, preflight
from tests.training.models import llama, rows_for, tokenizer, write_rows

LONG = [{"text": "a" * 200}, {"text": "b" * 200}, *({"text": f"{i}"} for i in range(18))]
LABELS = [{"text": f"{i}", "label": i % 2} for i in range(20)]

CASES = {
    "E-FP16-CPU": ("sft", {"train": {"precision": "fp16"}}, {"train": {"precision": "bf16"}}),
    "E-BF16-DEFAULT": ("sft", {}, {"train": {"precision": "bf16"}}),
    "E-TARGET": (
        "sft",
        {"peft": {"kind": "lora", "targets": ["q_proj", "v_prj"]}},
        {"peft": {"kind": "lora", "targets": ["q_proj", "v_proj"]}},
    ),
    "E-PREFIX-CKPT": (
        "sft",
        {"peft": {"kind": "prefix"}, "train": {"activation_checkpointing": True}},
        {"peft": {"kind": "prompt"}, "train": {"activation_checkpointing": True}},
    ),
    "E-QHEAD": ("classify", {"peft": {"kind": "qlora"}}, {"peft": {"kind": "lora"}}),
    "E-QCAST": (
        "sft",
        {"peft": {"kind": "qlora"}},
        {"peft": {"kind": "qlora"}, "train": {"precision": "bf16"}},
    ),
    "E-WORLD": ("sft", {"launch": {"nproc": 3}}, {"launch": {"nproc": 2}}),
    "E-BASE-PATH": ("sft", {}, {"model": {"id": "acme/tiny"}}),
    "E-PPO": ("ppo", {"peft": {"kind": "prompt"}}, {"peft": {"kind": "lora"}}),
    "E-LABELS": (
        "classify",
        {"rows": [row | {"label": 0} for row in LABELS]},
        {"rows": LABELS},
    ),
    "E-LENGTH": ("sft", {"rows": LONG}, {"rows": LONG, "train": {"max_length": 256}}),
    "E-GEN": (
        "grpo",
        {"train": {"batch_size": 6}, "method": {"num_generations": 4}},
        {"train": {"batch_size": 8}, "method": {"num_generations": 4}},
    ),
    "E-EMPTY": (
        "sft",
        {"data": {"filter": [{"min_chars": 1000}]}},
        {"data": {"filter": [{"min_chars": 2}]}},
    ),
    "E-TRACK": ("sft", {"track": {"to": ["no_such_tracker"]}}, {"track": {"to": []}}),
    "E-DEEPSPEED": ("sft", {"launch": {"deepspeed": "zero2.json"}}, {"launch": {"deepspeed": None}}),
}


def ids(checked):
    return {finding.id for finding in checked.findings}


@pytest.mark.parametrize("name", CASES)
def test_found_where_it_is_and_only_there(name, configure):
    method, wrong, right = CASES[name]
    assert name in ids(preflight(method, configure(method, **wrong)))
    assert name not in ids(preflight(method, configure(method, **right)))


def severity(checked, name):
    return next(finding.severity for finding in checked.findings if finding.id == name)


def test_severities(configure):
    assert severity(preflight("sft", configure("sft", train={"precision": "fp16"})), "E-FP16-CPU") == "error"
    published = configure("sft", publish={"enabled": True, "repo": "acme/x"})
    assert severity(preflight("sft", published), "E-BASE-PATH") == "error"
    torn = [{"text": f"{i // 2}", "label": i % 2} for i in range(20)]
    assert severity(preflight("classify", configure("classify", rows=torn)), "E-LABELS") == "warning"
    gap = [{"text": f"{i}", "label": 2 * (i % 2)} for i in range(20)]
    found = preflight("classify", configure("classify", rows=gap)).findings
    assert any("no row has the label 1" in finding.message for finding in found)
    words = [{"text": f"{i}", "label": "good"} for i in range(20)]
    assert severity(preflight("classify", configure("classify", rows=words)), "E-LABELS") == "error"


def test_hints_name_what_would_do(configure):
    found = preflight("grpo", configure("grpo", train={"batch_size": 6}, method={"num_generations": 4}))
    assert next(f for f in found.findings if f.id == "E-GEN").hint == "train.batch_size=4 or 8"
    found = preflight("sft", configure("sft", peft={"kind": "lora", "targets": ["v_prj"]}))
    assert "v_proj" in next(f for f in found.findings if f.id == "E-TARGET").hint


@pytest.mark.parametrize(("method", "model"), [("dpo", "t5"), ("sft", "bert"), ("grpo", "bert")])
def test_a_method_that_does_not_fit_the_architecture(method, model, configure, models):
    config = configure(method, model={"path": str(models / model)})
    with pytest.raises(InputError, match="E-TASKTYPE"):
        preflight(method, config)


def test_a_task_type_of_ones_own(configure):
    preflight("sft", configure("sft", peft={"kind": "lora", "task_type": "CAUSAL_LM"}))
    with pytest.raises(InputError, match="E-TASKTYPE"):
        preflight("sft", configure("sft", peft={"kind": "lora", "task_type": "SEQ_2_SEQ_LM"}))


def test_a_path_as_base_model_and_no_model(configure):
    with pytest.raises((InputError, ConnectionError)) as caught:
        preflight("sft", configure("sft", model={"path": "/nowhere/at-all"}))
    assert "nowhere" in str(caught.value)


def test_columns_that_are_missing(configure):
    with pytest.raises(InputError, match="dpo needs the columns"):
        preflight("dpo", configure("dpo", rows=rows_for("sft")))


def test_overlap_with_the_rows_to_evaluate_on(configure, tmp_path):
    other = write_rows(tmp_path / "eval.jsonl", [{"text": "never seen"}])
    both = write_rows(tmp_path / "both.jsonl", rows_for("sft")[:3])
    assert "E-OVERLAP" in ids(preflight("sft", configure("sft", data={"eval": str(both)})))
    assert "E-OVERLAP" not in ids(preflight("sft", configure("sft", data={"eval": str(other)})))


def changed_model(models, tmp_path, made):
    folder = tmp_path / "changed"
    transformers.LlamaForCausalLM.from_pretrained(models / "llama").save_pretrained(folder)
    made.save_pretrained(folder)
    return {"path": str(folder)}


def test_tokenizers(configure, models, tmp_path):
    bare = tokenizer(pad_token=None)
    found = ids(preflight("sft", configure("sft", model=changed_model(models, tmp_path, bare))))
    assert "E-PAD" in found
    assert not {"E-PAD", "E-VOCAB"} & ids(preflight("sft", configure("sft")))
    longer = tokenizer()
    longer.add_tokens(["<one more>"])
    found = preflight("sft", configure("sft", model=changed_model(models, tmp_path, longer)))
    assert severity(found, "E-VOCAB") == "error"
    nothing = tokenizer(pad_token=None, eos_token=None)
    with pytest.raises(InputError, match="no token that pads"):
        preflight("sft", configure("sft", model=changed_model(models, tmp_path, nothing)))


def test_a_model_without_tokenizer(configure, tmp_path):
    llama().save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="has no tokenizer that can be read"):
        preflight("sft", configure("sft", model={"path": str(tmp_path / "bare")}))


def test_messages_need_a_chat_template(configure, models, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}] * 4
    assert severity(preflight("sft", configure("sft", rows=rows)), "E-CHAT") == "error"
    spoken = tokenizer(chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    model = changed_model(models, tmp_path, spoken)
    assert "E-CHAT" not in ids(preflight("sft", configure("sft", rows=rows, model=model)))


def test_one_process_of_accelerate(configure, monkeypatch):
    config = configure("sft", launch={"nproc": 2})
    assert "E-WORLD" not in ids(preflight("sft", config))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert "E-WORLD" in ids(preflight("sft", config))


def test_bitsandbytes_that_is_missing(configure, monkeypatch):
    config = configure("sft", peft={"kind": "qlora"})
    assert "E-BNB" not in ids(preflight("sft", config))
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    found = preflight("sft", config).findings
    with pytest.raises(MissingExtra) as caught:
        check(found, force=True, tell=lambda _: None)
    assert "hilm[qlora]" in caught.value.hint


def test_memory_that_does_not_suffice(configure, monkeypatch):
    config = configure("sft")
    needed = preflight("sft", config).plan["total"]
    monkeypatch.setattr(budget, "free_mb", lambda place: (needed - 1) / 2**20)
    checked = preflight("sft", config)
    assert ids(checked) >= {"E-MEM"}
    assert severity(checked, "E-MEM") == "note", "activation checkpointing was enough"
    assert checked.config.train.activation_checkpointing is True
    monkeypatch.setattr(budget, "free_mb", lambda place: 0.001)
    found = preflight("sft", config).findings
    with pytest.raises(InputError, match="E-MEM"):
        check(found, force=False, tell=lambda _: None)
    check(found, force=True, tell=lambda _: None)


def test_a_disk_that_is_full(configure, monkeypatch):
    assert "E-DISK" not in ids(preflight("sft", configure("sft")))
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    assert severity(preflight("sft", configure("sft")), "E-DISK") == "error"


@pytest.mark.parametrize(
    ("kind", "values"), [("lora", 8 * 2 * (64 + 64) + 8 * 2 * (64 + 32)), ("prefix", 512), ("prompt", 256)]
)
def test_adapters_are_counted(kind, values, configure):
    peft = {"kind": kind, "r": 8, "virtual_tokens": 4}
    situation = look("sft", configure("sft", peft=peft))
    assert count_adapter(situation, situation.config)[0] == values


def test_there_is_no_such_method(configure):
    with pytest.raises(UsageError, match="no method 'sgt'"):
        preflight("sgt", configure("sft"))


def test_what_is_left_open_is_decided(configure):
    config = preflight("sft", configure("sft")).config
    assert config.train.activation_checkpointing is False
    assert (
        from_document(
            {"model": {"path": "m"}, "data": {"path": "d"}, "out": "o"}
        ).train.activation_checkpointing
        == "auto"
    )
