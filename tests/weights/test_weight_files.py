from __future__ import annotations

import json

import numpy as np
import pytest

from hilm import errors
from hilm.weights import hub_files, open_checkpoint
from hilm.weights.folder import locate
from hilm.weights.retry import Patience
from hilm.weights.weight_files import INDEX, PIPELINE
from tests.hostile.onnx_files import model, outside, tensor
from tests.servers import COMMIT, Hub, Server, reach
from tests.tiny import file_bytes, stored, write_model

PARTS = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "requires_safety_checker": True,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "OnnxRuntimeModel"],
}


def weights(*values):
    return file_bytes({"w": stored(np.array(values, np.float32))})


def write_pipeline(folder):
    """One part sharded, one with variants, one in ONNX with data beside it, one without weights."""
    for part, settings in (
        ("scheduler", "scheduler_config.json"),
        ("unet", "config.json"),
        ("vae", "config.json"),
    ):
        (folder / part).mkdir(parents=True)
        (folder / part / settings).write_text("{}")
    write_model(folder / "text_encoder", {"a": np.ones(3), "w": np.arange(4.0)}, shards=2, config={})
    (folder / PIPELINE).write_text(json.dumps(PARTS))
    unet = folder / "unet" / "diffusion_pytorch_model"
    unet.with_suffix(".safetensors").write_bytes(weights(1, 2))
    unet.with_suffix(".fp16.safetensors").write_bytes(weights(3))
    (folder / "vae" / "model.onnx").write_bytes(
        model(tensor(), tensor("v", values=outside(location="v.data")))
    )
    (folder / "vae" / "v.data").write_bytes(np.array([5, 6], "<f4").tobytes())
    (folder / "whole.ckpt").write_bytes(b"not looked at")
    return folder


NAMES = ["text_encoder/a", "text_encoder/w", "unet/w", "vae/w", "vae/v"]


def check_pipeline(checkpoint):
    assert (checkpoint.kind, sorted(checkpoint.tensors)) == ("pipeline", sorted(NAMES))
    assert checkpoint.array("text_encoder/w").tolist() == [0, 1, 2, 3]
    assert checkpoint.array("unet/w").tolist() == [1, 2]
    assert checkpoint.array("vae/v").tolist() == [5, 6]
    assert [f.name for f in checkpoint.files][2:] == [
        "unet/diffusion_pytorch_model.safetensors", "vae/model.onnx", "vae/v.data",
    ]  # fmt: skip
    assert "unet/diffusion_pytorch_model.fp16.safetensors is not part of the checkpoint" in checkpoint.notes


def test_a_pipeline_is_its_parts_under_their_names(tmp_path):
    folder = write_pipeline(tmp_path / "sd")
    for target in (folder, folder / PIPELINE):
        with open_checkpoint(target) as checkpoint:
            check_pipeline(checkpoint)
            assert checkpoint.uri == str(folder)
            assert checkpoint.total_parameters == 3 + 4 + 2 + 2 + 2
    with open_checkpoint(folder / "unet") as checkpoint:
        assert (checkpoint.kind, list(checkpoint.tensors)) == ("model", ["w"])


def test_a_pipeline_on_the_hub_or_in_its_cache_is_the_same(tmp_path, monkeypatch):
    folder = write_pipeline(tmp_path / "sd")
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    monkeypatch.setattr(hub_files, "PATIENCE", Patience(tries=2, first=0.01))
    with Hub({"org/sd": files}) as hub:
        reach(hub, monkeypatch, tmp_path / "home")
        with open_checkpoint("org/sd") as checkpoint:
            check_pipeline(checkpoint)
    cache = tmp_path / "home" / "hub" / "models--org--sd"
    (cache / "blobs").mkdir(parents=True)
    for number, (name, body) in enumerate(files.items()):
        (cache / "blobs" / str(number)).write_bytes(body)
        link = cache / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(cache / "blobs" / str(number))
    with open_checkpoint(cache / "snapshots" / COMMIT) as checkpoint:
        check_pipeline(checkpoint)


def test_parts_that_are_not_there_are_not_passed_over(tmp_path):
    folder = write_pipeline(tmp_path / "sd")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(errors.NotACheckpoint, match="unet holds no weights"):
        locate(folder)
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(errors.MissingShard, match="unet/"):
        locate(folder)
    (folder / PIPELINE).write_text('{"scheduler": ["a", "b"]}')
    with pytest.raises(errors.NotACheckpoint, match="lists no part"):
        locate(folder)
    for name in ("../sd", "a/b", "", "."):
        (folder / PIPELINE).write_text(json.dumps({name: ["a", "b"]}))
        with pytest.raises(errors.UnsafePath):
            locate(folder)


def test_a_pipeline_in_a_pipeline_is_not_followed(tmp_path):
    """A link to the folder itself would never end."""
    folder = tmp_path / "sd"
    folder.mkdir()
    (folder / "loop").symlink_to(folder)
    (folder / PIPELINE).write_text('{"loop": ["a", "b"]}')
    (folder / "model.safetensors").write_bytes(weights(1))
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["loop/w"]


def test_a_variant_is_the_files_that_carry_it(tmp_path):
    folder = write_model(tmp_path / "m", {"w": np.zeros(3, np.float32)})
    (folder / "model.fp16.safetensors").write_bytes(weights(1))
    for variant, size in ((None, 3), ("fp16", 1)):
        with open_checkpoint(folder, variant=variant) as checkpoint:
            assert checkpoint.total_parameters == size
            uri = checkpoint.uri
        with open_checkpoint(uri) as again:
            assert again.total_parameters == size
    with open_checkpoint(f"{folder}#fp16") as checkpoint:
        assert checkpoint.total_parameters == 1
    with pytest.raises(errors.NotACheckpoint, match=r"bf16.*model\.fp16\.safetensors, model\.safetensors"):
        locate(folder, variant="bf16")
    for wrong in ("", "a/b", "fp16."):
        with pytest.raises(errors.UsageError):
            locate(folder, variant=wrong)
    with pytest.raises(errors.UsageError, match="is a file"):
        locate(folder / "model.safetensors", variant="fp16")


def test_variants_of_shards_and_indexes(tmp_path):
    folder = write_model(tmp_path / "m", {"w": np.zeros(3, np.float32)})
    shards = [f"model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name, tensor_name in zip(shards, "ab", strict=True):
        (folder / name).write_bytes(file_bytes({tensor_name: stored(np.ones(2, np.float32))}))
    located = locate(folder, variant="fp16")
    assert (located.weights, locate(located.uri).weights) == (tuple(shards), (shards[0],))
    index = "model.safetensors.index.fp16.json"
    (folder / index).write_text(json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}))
    located = locate(folder, variant="fp16")
    assert located.weights == tuple(shards)
    assert locate(located.uri) == located
    assert locate(folder).weights == ("model.safetensors",)


def test_a_variant_of_a_pipeline_is_that_of_every_part(tmp_path):
    folder = write_pipeline(tmp_path / "sd")
    with pytest.raises(errors.NotACheckpoint, match=r"text_encoder .*'fp16'"):
        locate(folder, variant="fp16")
    (folder / "text_encoder" / "model.fp16.safetensors").write_bytes(weights(7))
    (folder / "vae" / "model.fp16.onnx").write_bytes(model(tensor()))
    with open_checkpoint(folder, variant="fp16") as checkpoint:
        uri = checkpoint.uri
        assert checkpoint.array("text_encoder/w").tolist() == [7]
        assert checkpoint.array("unet/w").tolist() == [3]
    assert locate(uri).weights == tuple(f.name for f in checkpoint.files)


def test_one_file_can_be_named(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes(weights(ord(name)))
    with pytest.raises(errors.AmbiguousCheckpoint) as caught:
        locate(tmp_path)
    assert "--weights-file" in caught.value.hint
    assert "weights_file=" in caught.value.hint
    with open_checkpoint(tmp_path, weights_file="b.safetensors") as checkpoint:
        assert checkpoint.array("w").tolist() == [98]
        assert checkpoint.uri == str(tmp_path / "b.safetensors")
    with pytest.raises(errors.NotACheckpoint):
        locate(tmp_path, weights_file="c.safetensors")
    files = {name: (tmp_path / name).read_bytes() for name in ("a.safetensors", "b.safetensors")}
    with Hub({"org/two": files}) as hub:
        reach(hub, monkeypatch, tmp_path / "home")
        for target in ("org/two", "hf://org/two@main"):
            with open_checkpoint(target, weights_file="a.safetensors") as checkpoint:
                assert checkpoint.array("w").tolist() == [97]


def test_adapters_speak_of_the_model_they_adapt(tmp_path):
    inner = "model.layers.0.self_attn.q_proj"
    pair = {f"base_model.model.{inner}.lora_{side}.weight": np.ones((2, 2), np.float32) for side in "AB"}
    folder = write_model(tmp_path / "m", pair)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/me/llama"}')
    for target in (folder, folder / "adapter_model.safetensors"):
        with open_checkpoint(target) as checkpoint:
            assert checkpoint.kind == "adapter"
            assert list(checkpoint.tensors) == [f"{inner}.lora_{side}.weight" for side in "AB"]
            assert checkpoint.tensors[f"{inner}.lora_A.weight"].role.type == "attention"
            assert checkpoint.config == {"base_model_name_or_path": "/home/me/llama"}


def test_removed_names_of_shared_tensors_move_with_the_others(tmp_path):
    """Savers note them as ``removed: kept``."""
    (tmp_path / "part").mkdir()
    (tmp_path / PIPELINE).write_text('{"part": ["a", "b"]}')
    body = file_bytes({"w": stored(np.ones(2, np.float32))}, {"head": "w", "format": "pt"})
    (tmp_path / "part" / "model.safetensors").write_bytes(body)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors["part/head"].alias_of == "part/w"
        assert checkpoint.metadata == {"part/head": "part/w", "part/format": "pt"}


def test_shards_behind_a_url_are_beside_their_index(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    tensors = {f"t{n}": np.full(50_000, n, np.float32) for n in range(10)}
    folder = write_model(tmp_path / "m", tensors, shards=5)
    with Server({f"/x/m/{path.name}": path.read_bytes() for path in folder.iterdir()}) as server:
        url = server.url(f"/x/m/{INDEX}")
        with open_checkpoint(f"{url}?key=canary") as checkpoint:
            assert len(server.seen) == 6
            assert (checkpoint.name, checkpoint.uri) == ("m", url)
            np.testing.assert_array_equal(checkpoint.array("t7"), tensors["t7"])
        assert sum("canary" in seen.path for seen in server.seen) == 1
        del server.files["/x/m/model-00003-of-00005.safetensors"]
        with pytest.raises(errors.NotFound, match="00003"):
            open_checkpoint(url)


def test_reading_one_tensor_of_many_shards_costs_little_more_than_its_bytes(tmp_path, monkeypatch):
    tensors = {f"t{n}": np.zeros(1_500_000, np.float32) for n in range(5)}
    folder = write_model(tmp_path / "m", tensors, shards=5)
    with Hub({"org/m": {path.name: path.read_bytes() for path in folder.iterdir()}}) as hub:
        reach(hub, monkeypatch, tmp_path / "home")
        with open_checkpoint("org/m") as checkpoint:
            assert len(hub.seen) == 1 + 1 + 5
            assert len(hub.cdn.seen) == 5
            checkpoint.array("t3")
    fetched = sum(stop - start for start, stop in hub.cdn.ranges())
    assert fetched <= tensors["t3"].nbytes + (2 << 20)
