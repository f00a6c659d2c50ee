from __future__ import annotations

import json

import pytest
from huggingface_hub import hf_hub_download

from hilm.ship import check
from hilm.ship.model_card import Metric
from tests.ship.cards import ADAPTER, CONFIG, TENSORS, adapter, add, body, corrupt, errors, front, good

ACCURACY = Metric("text-generation", "org/texts", "accuracy", 0.5)


GOOD = {
    "plain": {},
    "shards": {"shards": 3},
    "finetune": {"base_model": ("org/base",)},
    "merge": {"base_model": ("org/a", "org/b"), "relation": "merge"},
    "quantized": {
        "config": CONFIG | {"quantization_config": {}}, "base_model": ("org/b",), "relation": "quantized"
    },
    "metrics": {"metrics": (ACCURACY,)},
    "licence": {"license": "other", "license_name": "ours", "license_link": "https://example.org/licence"},
    "words": {"limitations": "Trained on little text.", "intended_use": "Tests.", "language": ("no", "deu")},
    "other head": {"config": {"architectures": ["BertForSequenceClassification"]}},
    "bf16": {"tensors": {"lm_head.weight": ("BF16", (2, 2), b"\0\0" * 4)}},
    "bare": {"config": None},
}  # fmt: skip


@pytest.mark.parametrize("options", GOOD.values(), ids=GOOD)
def test_good_cards_have_no_findings(tmp_path, options):
    assert not check(good(tmp_path / "m", **options), "org/model")


def test_good_adapters_have_no_findings(tmp_path):
    assert not check(adapter(tmp_path / "a"), "org/adapter")


def settings(name, **fields):
    def plant(folder):
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))

    return plant


def metric(**changes):
    base = {
        "task": "type: text-generation",
        "dataset": "{type: a/b, name: n}",
        "type": "accuracy",
        "value": "0.5",
    }
    told = base | changes
    return add(
        f"model-index:\n- name: {told.get('name', 'm')}\n  results:\n  - task: {{{told['task']}}}\n"
        f"    dataset: {told['dataset']}\n"
        f"    metrics:\n    - {{type: {told['type']}, value: {told['value']}}}\n"
        f"    source: {{name: {told.get('source', 'self-reported')}}}"
    )


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def adapt(folder):
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))


DEFECTS = {
    "C01 no front matter": front("---\n", ""),
    "C01 twice": add("license: mit"),
    "C01 a list": front("license: apache-2.0", "- a"),
    "C01 alias": add("a: &x [1]\nb: *x"),
    "C01 object": add("a: !!python/object:os.system {}"),
    "C01 absent": lambda folder: (folder / "README.md").unlink(),
    "C02 unknown identifier": front("apache-2.0", "Apache 2"),
    "C02 a number": front("apache-2.0", "1"),
    "C02 other": front("apache-2.0", "other"),
    "C03 path": add("base_model: /models/llama"),
    "C03 address": add("base_model: https://huggingface.co/org/base"),
    "C03 itself": add("base_model: org/model"),
    "C04 relation": add("base_model: org/base\nbase_model_relation: nonsense"),
    "C04 no base": add("base_model_relation: finetune"),
    "C04 merge of one": add("base_model: org/base\nbase_model_relation: merge"),
    "C04 adapter without one": add("base_model: org/base\nbase_model_relation: adapter"),
    "C05 unknown task": front("pipeline_tag: text-generation", "pipeline_tag: sentiment"),
    "C05 other task": front("pipeline_tag: text-generation", "pipeline_tag: fill-mask"),
    "C06 library": front("library_name: transformers", "library_name: peft"),
    "C08 path": add("datasets: ../data"),
    "C09 number": add("tags: [2024]"),
    "C09 path": add("tags: ['base_model:adapter:/models/llama']"),
    "C10 text": metric(value="high"),
    "C10 infinite": metric(value=".inf"),
    "C10 data set": metric(dataset="{type: a/b}"),
    "C10 name": metric(name="''"),
    "C10 results": add("model-index:\n- name: m\n  results: 5"),
    "C12 placeholder": body("[More Information Needed]"),
    "C12 title": body("# Model Card for Model ID"),
    "C12 generator": body("<!-- generated -->"),
    "C13 card": body("trained in /home/someone/runs/7"),
    "C13 drive": body("trained in C:\\Users\\someone"),
    "C13 config": settings("config.json", _name_or_path="/mnt/models/llama"),
    "C14 token": body("hf_abcdefghijklmnopqrstuvwxyz012345"),
    "C14 in another file": write("notes.txt", b"-----BEGIN RSA PRIVATE KEY-----"),
    "C15 other base": adapt,
    "C16 pickle": write("optimizer.pt", b"x"),
    "C16 shard missing": write("model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}'),
    "C16 cut": write("model.safetensors", b"\0" * 9),
    "C16 config": write("config.json", b"{"),
    "C17 not finite": corrupt,
    "C18 count": front("512 parameters", "1,512 parameters"),
    "C18 type": front("stored as F32", "stored as BF16"),
    "C19 other id": front('from_pretrained("org/model")', 'from_pretrained("org/other")'),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect_is_found(tmp_path, name):
    folder = good(tmp_path / "m")
    DEFECTS[name](folder)
    assert name[:3] in errors(folder)


WARNINGS = {
    "C02": front("apache-2.0", "unknown"),
    "C03": add("base_model: gpt2"),
    "C07": front("- en", "- english"),
    "C11": metric(source="somewhere"),
    "C18": body("It has 7B parameters."),
    "C19": body("[more](docs/more.md)"),
}


@pytest.mark.parametrize("rule", WARNINGS)
def test_doubts_are_warnings(tmp_path, rule):
    folder = good(tmp_path / "m")
    WARNINGS[rule](folder)
    assert {(found.rule, found.level) for found in check(folder, "org/model")} == {(rule, "warning")}


def test_norwegian_is_not_false(tmp_path):
    folder = good(tmp_path / "m")
    front("- en", "- no")(folder)
    (found,) = check(folder)
    assert (found.rule, found.line) == (
        "C07",
        folder.joinpath("README.md").read_text().split("\n").index("language:") + 1,
    )


def test_shards_that_do_not_add_up(tmp_path):
    folder = good(tmp_path / "m", shards=3)
    index = folder / "model.safetensors.index.json"
    settings(index.name, metadata={"total_size": 7})(folder)
    assert errors(folder) == {"C16"}
    index.unlink()
    assert "C16" in errors(folder)


def test_the_licence_of_the_base_is_compared(tmp_path, local_hub, monkeypatch):
    local_hub.add("org/base", {"README.md": b"---\nlicense: gpl-3.0\n---\n"})
    hf_hub_download("org/base", "README.md", endpoint=local_hub.endpoint)
    folder = good(tmp_path / "m", base_model=("org/base",))
    seen = len(local_hub.log)
    assert [(found.rule, found.level) for found in check(folder)] == [("C20", "warning")]
    assert len(local_hub.log) == seen


def test_tensors_of_the_fixture_are_the_ones_counted():
    assert sum(t.size for t in TENSORS.values()) == 512
