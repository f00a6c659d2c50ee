from __future__ import annotations

import json
import shutil

import pytest

from hilm.errors import InputError, UsageError
from hilm.parity.encoders import quiet
from hilm.parity.engine import compare
from hilm.parity.inputs import Reading, read_inputs
from hilm.parity.selftest import train_like
from hilm.parity.sides import Side
from hilm.parity.verdict import Gates
from hilm.reel.encoder import encode_small
from hilm.reel.rate import Rounding
from hilm.weights import open_checkpoint
from tests.parity.media import write_picture

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A vision model, copies in 16 bits and in 8 (a reel), an adapter, and both merged."""
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("sides")
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=128, image_size=56,
        patch_size=14, layer_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTModel(config).eval()
    train_like(model)
    model.save_pretrained(folder / "vit")
    with open_checkpoint(folder / "vit") as checkpoint:
        encode_small(checkpoint, folder / "vit.reel.mp4", Rounding(bits=8), preview=False)
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "fc1"])
    model.name_or_path = str(folder / "vit")
    with quiet():
        adapted = peft.get_peft_model(model, lora)
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            value.data.normal_(0, 0.02)
    adapted.save_pretrained(folder / "adapter")
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    model.to(torch.bfloat16).save_pretrained(folder / "merged16")
    write_picture(folder / "cat.png")
    return folder


@pytest.fixture(scope="module")
def cat(models):
    return read_inputs([("cat", "", str(models / "cat.png"))], Reading(size=(56, 56)))


def side(models, text, **options):
    return Side.parse("+".join(str(models / part) for part in text.split("+"))).runner(**options)


@pytest.mark.parametrize("text", ["adapter", "vit+adapter"])
def test_an_adapter_and_its_merged_weights_are_one_model(models, cat, text):
    report = compare(side(models, text), side(models, "merged"), cat)
    assert (report.verdict, report.at_precision_floor) == ("pass", True)
    assert report.audit.weights["unpaired"] == 2 * 9
    assert any("outputs decide" in warning for warning in report.warnings)


def test_weights_without_the_adapter_are_another_model(models, cat):
    report = compare(side(models, "adapter"), side(models, "vit"), cat)
    assert (report.verdict, report.first_divergence["stage"]) == ("fail", "layer.0")
    assert report.first_divergence["sub"] == "attn"


def test_merging_into_16_bits_is_judged_in_those(models, cat):
    sides = side(models, "adapter"), side(models, "merged16")
    assert compare(*sides, cat, precision="deployed").verdict == "pass"
    assert compare(*sides, cat).verdict == "fail"  # in float32 the rounded sum is another function


def test_a_reel_of_eight_bits_is_judged_by_its_noise(models, cat):
    weights = f"reel:{models / 'vit.reel.mp4'}"
    for decibels, verdict in ((25, "pass"), (90, "fail")):
        runner = side(models, "vit", weights=weights)
        report = compare(side(models, "vit"), runner, cat, gates=Gates(min_sqnr=decibels))
        assert (report.verdict, report.compatible, report.at_precision_floor) == (verdict, True, False)
    report = compare(side(models, "vit"), side(models, "vit", weights=weights), cat)
    assert (report.verdict, report.first_divergence["stage"]) == ("fail", "audit")


def test_other_weights_must_fit(models, tmp_path):
    with pytest.raises(InputError, match="do not fit"):
        side(models, "vit", weights=str(models / "adapter")).survey()
    for text in ("vit+adapter", "vit.onnx"):
        with pytest.raises(UsageError, match="no other weights"):
            side(models, text, weights="x")
    with pytest.raises(UsageError, match="nowhere"):
        Side.parse("module:nowhere:x").runner()
    shutil.copytree(models / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(InputError, match="names no base"):
        Side.parse(str(tmp_path / "adapter"))
    file.write_text("{")
    with pytest.raises(InputError, match="no adapter of"):
        Side.parse(f"{models / 'vit'}+{tmp_path / 'adapter'}").runner().survey()


def test_a_factory_is_a_side(cat, monkeypatch, tmp_path):
    (tmp_path / "factory_of_a_test.py").write_text(
        "import torch\n"
        "class Model(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed = torch.nn.Conv2d(3, 32, 14, 14)\n"
        "        self.blocks = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(2))\n"
        "    def forward(self, pixel_values):\n"
        "        x = self.embed(pixel_values).flatten(2).transpose(1, 2)\n"
        "        for block in self.blocks: x = x + block(x)\n"
        "        return x\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return Model(), None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    runner = Side.parse("module:factory_of_a_test:make").runner(blocks="blocks")
    assert compare(runner, runner, cat).verdict == "pass"
    runner = Side.parse("module:factory_of_a_test:make").runner(blocks="nothing")
    with pytest.raises(InputError, match="no stack of layers at nothing"):
        compare(runner, runner, cat)
