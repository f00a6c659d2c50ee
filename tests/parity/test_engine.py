from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from hilm.errors import UsageError
from hilm.parity.encoders import encoder_runner
from hilm.parity.engine import compare, compare_inputs
from hilm.parity.inputs import Item, Reading, read_inputs
from hilm.parity.runners import DumpRunner, module_runner, prepare_module, write_dump
from hilm.parity.selftest import generated_items
from hilm.parity.verdict import Gates


@pytest.fixture(scope="module")
def item(vit):
    return generated_items(vit.load())[0]


@pytest.fixture(scope="module")
def inputs(pair):
    files = [("picture", "", str(pair / "1.png")), ("clip", "", str(pair / "1.mp4"))]
    return read_inputs(files, Reading(num_frames=3))


def candidate(vit, change=None, dtype=torch.float32):
    model = vit.load()
    if change:
        change(model)
    return module_runner(model.to(dtype))


def test_the_same_model_is_at_the_floor(vit, item):
    report = compare(vit, candidate(vit), [item])
    assert (report.verdict, report.compatible, report.at_precision_floor) == ("pass", True, True)
    assert report.first_divergence is None
    assert {stage.ratio for stage in report.stages if stage.ratio is not None} == {1.0}
    stages = [stage.stage for stage in report.stages if stage.mode == "local"]
    assert {"embed", "layer.0/norm1", "layer.1/attn", "layer.2/mlp", "layer.2", "post", "head"} <= set(stages)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_is_at_its_own_floor(vit, item, dtype):
    report = compare(vit, candidate(vit, dtype=dtype), [item])
    assert (report.verdict, report.at_precision_floor) == ("pass", True)
    assert report.audit.weights["cast"]
    assert set(report.floor) == {"float32", str(dtype).removeprefix("torch.")}


def test_a_fault_is_named_and_what_follows_has_inherited_it(vit, item):
    def change(model):
        model.layers[1].attention.o_proj.weight.data *= 1.02

    report = compare(vit, candidate(vit, change), [item], check_weights=False)
    found = report.first_divergence
    assert (report.verdict, found["stage"], found["sub"], found["precision"]) == (
        "fail",
        "layer.1",
        "attn",
        "float32",
    )
    assert report.compatible  # a cosine of 0.99 does not see it
    assert {"layer.2", "post", "head"} <= set(found["inherited"])
    failing = {stage.stage for stage in report.stages if stage.status == "fail"}
    assert failing == {"layer.1", "layer.1/attn"}


def test_a_fault_of_the_wiring_is_no_fault_of_a_part(vit, item):
    def change(model):
        block = model.layers[1]
        plain = block.forward
        block.forward = lambda hidden, *rest, **more: plain(hidden, *rest, **more) + 0.01 * hidden

    model = vit.load()
    change(model)
    report = compare(vit, replace(vit, load=lambda: model, label="rewired"), [item], check_weights=False)
    assert (report.first_divergence["stage"], report.first_divergence["sub"]) == ("layer.1", "wiring")


def test_the_audit_stops_a_comparison_of_other_weights(vit, item):
    def change(model):
        model.layers[0].mlp.fc1.weight.data[0, 0] += 1

    report = compare(vit, candidate(vit, change), [item])
    assert (report.verdict, [stage.stage for stage in report.stages]) == ("fail", ["audit"])
    assert "layers.0.mlp.fc1.weight differs" in report.first_divergence["detail"]


def test_values_that_are_not_finite_fail(vit, item):
    def change(model):
        model.layers[1].mlp.fc2.bias.data[3] = torch.nan

    report = compare(vit, candidate(vit, change), [item], check_weights=False)
    assert not report.compatible
    assert (report.first_divergence["stage"], report.first_divergence["sub"]) == ("layer.1", "mlp")
    assert "NaN" in report.first_divergence["detail"]


def test_int8_weights_are_judged_by_their_noise(vit, item):
    def quantise(model):
        for value in model.parameters():
            if value.ndim == 2:
                step = value.data.abs().amax(1, keepdim=True) / 127
                value.data = (value.data / step).round() * step

    for decibels, verdict in ((20, "pass"), (90, "fail")):
        report = compare(vit, candidate(vit, quantise), [item], gates=Gates(min_sqnr=decibels))
        assert report.verdict == verdict
        assert report.at_precision_floor is False
    assert compare(vit, candidate(vit, quantise), [item]).verdict == "fail"


def test_packed_is_padded(pair, inputs):
    report = compare(encoder_runner(str(pair / "padded")), encoder_runner(str(pair / "packed")), inputs)
    assert (report.verdict, report.at_precision_floor) == ("pass", True)
    assert report.audit.weights == {"identical": 63, "unpaired": 0}


def test_two_packings_of_a_clip_differ_where_slots_do(pair, inputs):
    late = [replace(item, slots=tuple(range(len(item.slots)))) for item in inputs]
    runner = encoder_runner(str(pair / "packed"))
    report = compare(encoder_runner(str(pair / "padded")), runner, inputs, candidate_items=late)
    assert report.first_divergence["stage"] == "layer.0"
    assert (report.first_divergence["sub"], report.first_divergence["input"]) == ("attn", "clip")


def test_a_dump_is_a_side(vit, item, tmp_path):
    write_dump(replace(vit), [item], tmp_path / "dump")
    dump = DumpRunner(tmp_path / "dump", "dump")
    for sides in ((vit, dump), (dump, candidate(vit)), (dump, dump)):
        report = compare(*sides, [item])
        assert (report.verdict, report.compatible, report.at_precision_floor) == ("pass", True, None)
    other = candidate(vit, lambda model: model.layers[0].mlp.fc2.weight.data.mul_(-1))
    report = compare(dump, other, [item])
    assert (report.verdict, report.compatible) == ("fail", False)
    with pytest.raises(UsageError, match="already"):
        write_dump(replace(vit), [item], tmp_path / "dump")


def test_a_side_that_cannot_be_fed_refuses_local_mode(vit, item, tmp_path):
    write_dump(replace(vit), [item], tmp_path / "dump")
    with pytest.raises(UsageError, match="layer by layer"):
        compare(vit, DumpRunner(tmp_path / "dump", "dump"), [item], mode="local")
    with pytest.raises(UsageError, match="no input"):
        compare(vit, vit, [])


def test_text_models_with_padding():
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    model = BertModel(config).eval()
    tokens = {"input_ids": np.arange(14).reshape(2, 7), "attention_mask": np.ones((2, 7), np.int64)}
    tokens["attention_mask"][1, 5:] = 0
    item = Item("text", "arrays", "text", arrays=tokens)
    left = {name: np.concatenate([array[1:, 5:], array[1:, :5]], 1) for name, array in tokens.items()}
    assert compare(module_runner(model), module_runner(copy.deepcopy(model)), [item]).verdict == "pass"

    def shifted(item, model):
        # Padding in front: other rows, the same tokens with the same positions.
        _, words, _ = prepare_module(Item("text", "arrays", "", arrays=left), model)
        positions = torch.tensor([[0, 0, 0, 1, 2, 3, 4]])
        return (), {**words, "position_ids": positions}, None

    alone = Item("text", "arrays", "text", arrays={name: array[1:] for name, array in tokens.items()})
    report = compare(module_runner(model), module_runner(copy.deepcopy(model), prepare=shifted), [alone])
    assert report.first_divergence["stage"] == "head"  # the pooler takes the first row, which is padding now
    model.pooler = None
    report = compare(module_runner(model), module_runner(copy.deepcopy(model), prepare=shifted), [alone])
    assert (report.verdict, report.first_divergence) == ("pass", None)


def test_a_token_that_is_missing_fails():
    class Stack(torch.nn.Module):
        def __init__(self, cut):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
            self.cut = cut

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

    torch.manual_seed(0)
    model = Stack(cut=False)
    item = Item("x", "arrays", "x", arrays={"x": np.ones((1, 5, 4), np.float32)})

    def short(item, model):
        args, words, keys = prepare_module(item, model)
        return args, {"x": words["x"][:, :4]}, keys

    report = compare(module_runner(model), module_runner(model, prepare=short), [item])
    assert report.verdict == "fail"
    assert "1 missing tokens" in report.first_divergence["detail"]


def test_inputs_are_compared_first(inputs):
    clip = inputs[1]
    late = replace(clip, facts=clip.facts | {"frame_indices": [1, 2, 3]})
    assert [stage.status for stage in compare_inputs(clip, clip)] == ["shared"] * 3
    assert [s.stage for s in compare_inputs(clip, late) if s.status == "fail"] == ["decode"]
    flipped = replace(clip, frames=clip.frames[..., ::-1])
    assert [s.stage for s in compare_inputs(clip, flipped) if s.status == "fail"] == ["pixels"]
