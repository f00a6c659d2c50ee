from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from hilm.errors import ConversionError, InputError
from hilm.models.onevision import OneVisionModel, OneVisionPackedModel, load_onevision
from tests.models.onevision.tiny import equal, packed, padded, pixels, run, run_packed


@pytest.fixture
def folder(tmp_path):
    padded().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_checkpoint_loads_as_either_variant(folder):
    expected = run(padded(), pixels(1, 28, 42)[None])
    model, other = load_onevision(folder), load_onevision(folder, packed=True)
    assert (type(model), type(other)) == (OneVisionModel, OneVisionPackedModel)
    assert not model.training
    assert (model.config.rope_compute, other.config.rope_compute) == ("input", "float32")
    assert equal(run(model, pixels(1, 28, 42)[None]), expected)
    assert equal(expected, run_packed(other, [(pixels(1, 28, 42), None)]))


def test_what_is_saved_after_conversion_loads_again(folder, tmp_path_factory):
    there, back = tmp_path_factory.mktemp("packed"), tmp_path_factory.mktemp("padded")
    load_onevision(folder, packed=True).save_pretrained(there)
    load_onevision(there, packed=False).save_pretrained(back)
    first, second = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("kind", ["onevision_encoder", "llava_vit", "llava_vit_packing"])
def test_foreign_checkpoints_load_without_their_code(kind, tmp_path):
    made = packed(padded()) if kind == "llava_vit_packing" else padded()
    made.save_pretrained(tmp_path)
    code = "raise SystemExit('foreign code ran')"
    (tmp_path / "foreign.py").write_text(code)
    rewrite(tmp_path, model_type=kind, auto_map={"AutoModel": "foreign.Model"}, rope_style=None, of_theirs=1)
    model = load_onevision(tmp_path)
    assert type(model) is type(made)
    assert (model.config.rope_style, model.config.of_theirs) == ("adjacent_tiled", 1)
    assert not hasattr(model.config, "auto_map")
    assert all(torch.equal(value, made.state_dict()[key]) for key, value in model.state_dict().items())


def test_dtype_is_that_of_the_weights_unless_asked(tmp_path):
    padded(torch.bfloat16).save_pretrained(tmp_path)
    assert load_onevision(tmp_path).dtype == torch.bfloat16
    assert load_onevision(tmp_path, dtype=torch.float32, device="cpu").dtype == torch.float32


def test_pickled_weights_load_and_other_pickles_do_not(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(load_onevision(folder).head.probe, state["head.probe"])
    torch.save({"a": [1]}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds more than named tensors"):
        load_onevision(folder)
    torch.save({"a": os.system}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be read"):
        load_onevision(folder)


def test_shards_are_joined_and_repetitions_refused(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    save_file({key: state[key] for key in names[:9]}, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ConversionError, match="is missing"):
        load_onevision(folder)
    save_file({key: state[key] for key in names[9:]}, folder / "model-00002-of-00002.safetensors")
    load_onevision(folder)
    save_file({"head.probe": state["head.probe"]}, folder / "model.safetensors")
    with pytest.raises(ConversionError, match=r"repeats weights of another file: head.probe"):
        load_onevision(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "config.json cannot be read"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no configuration"),
        (" " * (1 << 20) + "{}", "no configuration"),
        ("{}", "is of type None; known are hilm_onevision, "),
        ('{"model_type": "vit"}', "is of type 'vit'"),
        ('{"model_type": "llava_vit", "hidden_size": 100}', "hidden_size is 100"),
        ('{"model_type": "llava_vit"}', "neither"),
    ],
    ids=str,
)
def test_bad_configurations_are_refused(content, words, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=words):
        load_onevision(tmp_path)


def test_damaged_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"model.safetensors cannot be read"):
        load_onevision(folder)
