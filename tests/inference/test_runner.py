from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import transformers

from hilm.errors import InputError, OfflineError, UsageError
from hilm.inference import create, run_task
from hilm.inference import runner as module
from hilm.inference.runner import json_safe
from tests.inference.models import MAKERS, bert, gpt2, tokenizer

QUESTION = {
    "question": "where is anna?",
    "context": "anna lives in berlin and works at acme. the cat sat on the mat.",
}
INPUTS = {
    "question-answering": [
        QUESTION,
        {"question": "who sat?", "context": "the dog sat."},
        QUESTION | {"question": "who?"},
    ],
    "zero-shot-classification": [
        {"text": "the cat sat", "labels": ["sport", "politics"]},
        {"text": "anna works", "labels": ["politics", "sport", "love"]},
        {"text": "i love this", "labels": ["sport", "politics"]},
    ],
    "fill-mask": ["the [MASK] sat.", "anna [MASK] in berlin and works at acme.", "i [MASK] this"],
}
TEXTS = ["i love this movie!", "anna lives in berlin and works at acme.", "okay"]


def inputs_of(task):
    return INPUTS.get(task, TEXTS)


def options_of(task):
    return {"max_new_tokens": 5, "do_sample": False} if task in GENERATING else {}


GENERATING = {"summarization", "translation_en_to_de", "text-generation"}


def close(a, b, tolerance=1e-6):
    """Equal, figures within a tolerance."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b, [tolerance] * len(a)))
    return math.isclose(a, b, abs_tol=tolerance) if isinstance(a, float) else a == b


def twin(task, folder, item):  # noqa: PLR0911 - one return per kind of answer
    """The same with a tokenizer and a model alone, in the way the documentation shows."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    head = {
        "sentiment-analysis": "SequenceClassification", "zero-shot-classification": "SequenceClassification",
        "ner": "TokenClassification", "question-answering": "QuestionAnswering", "fill-mask": "MaskedLM",
        "text-generation": "CausalLM",
    }.get(task, "Seq2SeqLM")  # fmt: skip
    model = getattr(transformers, f"AutoModelFor{head}").from_pretrained(folder).eval()
    names = model.config.id2label
    with torch.no_grad():
        if task == "zero-shot-classification":
            pairs = words(
                [item["text"]] * len(item["labels"]),
                [f"This example is {label}." for label in item["labels"]],
                return_tensors="pt",
                padding=True,
            )
            scores = torch.softmax(model(**pairs).logits[:, model.config.label2id["entailment"]], 0)
            order = scores.argsort(descending=True).tolist()
            return {
                "sequence": item["text"],
                "labels": [item["labels"][i] for i in order],
                "scores": [scores[i].item() for i in order],
            }
        if task == "question-answering":
            fed = words(item["question"], item["context"], return_tensors="pt", return_offsets_mapping=True)
            spans, part = fed.pop("offset_mapping")[0].tolist(), fed.sequence_ids(0)
            out = model(**fed)
            inside = torch.tensor([p == 1 for p in part])
            start, end = (
                torch.softmax(side[0].double().masked_fill(~inside, -math.inf), 0)
                for side in (out.start_logits, out.end_logits)
            )
            score, i, j = max(
                (start[i].item() * end[j].item(), i, j)
                for i in range(len(part))
                for j in range(i, min(i + 15, len(part)))
            )
            first, last = spans[i][0], spans[j][1]
            return {"score": score, "start": first, "end": last, "answer": item["context"][first:last]}
        if task in GENERATING:
            prefix = {"summarization": "summarize: ", "text-generation": ""}.get(
                task, "translate English to German: "
            )
            fed = words(prefix + item, return_tensors="pt")
            fed.pop("token_type_ids", None)
            ids = model.generate(
                **fed,
                max_new_tokens=5,
                do_sample=False,
                pad_token_id=words.pad_token_id or words.eos_token_id,
            )[0]
            if task == "text-generation":
                new = words.decode(ids[fed["input_ids"].shape[1] :], skip_special_tokens=True)
                return [{"generated_text": item + new}]
            key = "summary_text" if task == "summarization" else "translation_text"
            return [{key: words.decode(ids, skip_special_tokens=True)}]
        fed = words(item, return_tensors="pt", return_offsets_mapping=task == "ner")
        spans = fed.pop("offset_mapping", None)
        logits = model(**fed).logits[0]
        if task == "sentiment-analysis":
            scores = torch.softmax(logits, -1)
            return [{"label": names[scores.argmax().item()], "score": scores.max().item()}]
        if task == "fill-mask":
            (place,) = torch.nonzero(fed["input_ids"][0] == words.mask_token_id).flatten().tolist()
            best = torch.softmax(logits[place], -1).topk(5)
            filled = fed["input_ids"][0].clone()
            found = []
            for score, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                filled[place] = token
                sequence = words.decode(filled, skip_special_tokens=True)
                word = words.decode([token])
                found.append({"score": score, "token": token, "token_str": word, "sequence": sequence})
            return found
        scores = torch.softmax(logits, -1)
        return [
            {
                "entity": names[kind],
                "score": scores[index, kind].item(),
                "index": index,
                "word": words.convert_ids_to_tokens([fed["input_ids"][0, index]])[0],
                "start": spans[0, index, 0].item(),
                "end": spans[0, index, 1].item(),
            }
            for index, kind in enumerate(scores.argmax(-1).tolist())
            if names[kind] != "O" and fed["input_ids"][0, index] not in words.all_special_ids
        ]


@pytest.mark.parametrize("task", MAKERS)
def test_a_task_equals_its_tokenizer_and_model(task, runners, folders):
    for item in inputs_of(task):
        assert close(runners[task](item, **options_of(task)), twin(task, folders[task], item))


@pytest.mark.parametrize("task", MAKERS)
@pytest.mark.parametrize("size", [2, 8])
def test_a_batch_equals_a_loop_in_order_and_is_json(task, size, runners, folders):
    items, chosen = inputs_of(task), options_of(task)
    one_by_one = [runners[task]([item], **chosen)[0] for item in items]
    batched = create(task, folders[task], batch_size=size, device="cpu", **chosen)
    assert close(batched(items), one_by_one, 1e-5)
    assert close(list(batched.stream(iter(items))), one_by_one, 1e-5)
    assert json.loads(json.dumps(one_by_one, allow_nan=False)) == one_by_one
    assert batched([]) == []


@pytest.mark.parametrize("task", MAKERS)
def test_one_input_has_the_documented_shape(task, runners):
    item, chosen = inputs_of(task)[0], options_of(task)
    alone, (listed,) = runners[task](item, **chosen), runners[task]([item], **chosen)
    assert alone == ([listed] if runners[task].task.listed else listed)


def test_options_of_the_tasks(runners):
    assert len(runners["sentiment-analysis"]("okay", top_k=None)) == 2
    grouped = runners["ner"](TEXTS[1], grouped_entities=True)
    assert grouped
    assert all("entity_group" in entity for entity in grouped)
    assert len(runners["fill-mask"]("the [MASK]", top_k=1)) == 1
    several = runners["fill-mask"]("the [MASK] and [MASK]")
    assert [len(found) for found in several] == [5, 5]
    labelled = runners["zero-shot-classification"]("okay", labels=["sport", "love"], multi_label=True)
    assert sum(labelled["scores"]) != pytest.approx(1)
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(UsageError, match="chat template"):
        runners["text-generation"](messages)


@pytest.mark.parametrize(
    ("task", "item", "options", "told"),
    [
        ("sentiment-analysis", "", {}, "input 0.*not empty"),
        ("sentiment-analysis", ["okay", " "], {}, "input 1.*not empty"),
        ("sentiment-analysis", [1], {}, "takes a text"),
        ("sentiment-analysis", "okay", {"top": 2}, "no option 'top'"),
        ("question-answering", "who?", {}, "question and context"),
        ("question-answering", {"question": "who?", "context": ""}, {}, "input 0"),
        ("question-answering", {"question": "who " * 70, "context": "anna"}, {}, "70 tokens"),
        ("question-answering", QUESTION, {"score_scope": "page"}, "score_scope"),
        ("zero-shot-classification", "okay", {}, "text and labels"),
        ("fill-mask", "the cat", {}, "no mask"),
        ("text-generation", "the " * 70, {}, "70 tokens; the model takes 64"),
        ("fill-mask", "[MASK] " + "the " * 70, {}, "the model takes 64"),
        ("ner", "okay", {"aggregation_strategy": "none of these"}, "ner"),
    ],
)
def test_bad_input(task, item, options, told, runners):
    with pytest.raises((UsageError, InputError), match=told):
        runners[task](item, **options)


def test_models_that_cannot_do_the_task(folders, tmp_path):
    with pytest.raises(UsageError, match="CausalLM") as caught:
        create("text-generation", folders["summarization"])
    assert "summarization, translation_en_to_de" in caught.value.hint
    with pytest.raises(UsageError, match="entail"):
        create("zero-shot-classification", folders["sentiment-analysis"])
    with pytest.raises(UsageError, match="SequenceClassification") as caught:
        create("sentiment-analysis", folders["fill-mask"])
    assert "fill-mask" in caught.value.hint
    runner = create("sentiment-analysis", folders["fill-mask"], allow_random_head=True)
    assert runner("okay")[0]["label"] in {"LABEL_0", "LABEL_1"}


def test_a_head_that_was_never_trained(tmp_path):
    bert("MaskedLM").bert.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"architectures": ["BertForSequenceClassification"]})
    )
    tokenizer("bert").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="freshly initialised"):
        create("sentiment-analysis", str(tmp_path))


def test_damaged_models(folders, tmp_path):
    with pytest.raises(InputError, match="no folder"):
        create("ner", "./none/of/these")
    with pytest.raises(InputError, match="no weights"):
        create("ner", str(tmp_path))
    gpt2().save_pretrained(tmp_path)
    larger = tokenizer("gpt2")
    larger.add_tokens([f"word{index}" for index in range(9)])
    larger.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="tokenizer has"):
        create("text-generation", str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError):
        create("text-generation", str(tmp_path))


def test_devices_and_dtypes(folders):
    name = folders["sentiment-analysis"]
    with pytest.raises(UsageError, match="exclude"):
        create("sentiment-analysis", name, device="cpu", device_map="auto")
    with pytest.raises(UsageError, match="'cuda:99'"):
        create("sentiment-analysis", name, device="cuda:99")
    with pytest.raises(UsageError, match="int8"):
        create("sentiment-analysis", name, dtype="int8")
    with pytest.raises(UsageError, match="batch size"):
        create("sentiment-analysis", name, batch_size=0)
    info = create("sentiment-analysis", name, device="cpu", dtype="bfloat16").info()
    assert (info["device"], info["dtype"], info["class"]) == (
        "cpu",
        "bfloat16",
        "BertForSequenceClassification",
    )


def test_float16_is_computed_in_float32_on_the_cpu(tmp_path):
    bert("MaskedLM").half().save_pretrained(tmp_path)
    tokenizer("bert").save_pretrained(tmp_path)
    runner = create("fill-mask", str(tmp_path), device="cpu")
    assert runner.info()["dtype"] == "float32"
    assert "float16" in runner.notes[0]


@pytest.mark.parametrize("task", ["sentiment-analysis", "translation_fr_to_en"])
def test_the_models_of_the_tasks_need_the_hub(task):
    with pytest.raises(OfflineError) as caught:
        create(task)
    assert "--model" in caught.value.hint


def test_the_last_two_models_are_kept(folders, monkeypatch):
    module._kept.cache_clear()
    first = folders["sentiment-analysis"]
    for _ in range(3):
        assert run_task("sentiment-analysis", "okay", first, device="cpu")[0]["score"] > 0
    assert module._kept.cache_info()[:2] == (2, 1)
    module._kept.cache_clear()


def test_what_json_cannot_hold():
    notes = []
    value = {"a": np.float32(0.5), 1: (np.arange(2), torch.tensor(3)), "b": [float("nan"), -math.inf]}
    assert json_safe(value, notes) == {"a": 0.5, "1": [[0, 1], 3], "b": [None, None]}
    assert notes
    with pytest.raises(InputError):
        json_safe([b"x"], notes)
