from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from hilm import errors
from hilm.weights import ContentDigest, MemoryEfficientParameterStreamer, Selection, open_checkpoint
from tests.servers import Hub, Server, reach
from tests.tiny import bert_like, stored, write_model
from tests.weights import packing
from tests.weights.packing import BASE, write

WEIGHT = f"{BASE}.weight"


def rng():
    return np.random.default_rng(1)


def test_nothing_packed_is_one_table(tmp_path):
    with open_checkpoint(write_model(tmp_path, bert_like(1) | {"ids": np.zeros((1, 9))})) as checkpoint:
        assert checkpoint.tensors is checkpoint.stored


def test_a_broken_configuration_matters_only_where_something_looks_packed(tmp_path):
    write_model(tmp_path, {"a": np.zeros(3, np.float32)})
    (tmp_path / "config.json").write_text("{")
    open_checkpoint(tmp_path).close()
    write_model(tmp_path, packing.gptq(rng()).tensors)
    with pytest.raises(errors.CorruptCheckpoint, match=r"config\.json is not a JSON object"):
        open_checkpoint(tmp_path)


def test_a_group_stands_where_its_codes_are_and_says_what_it_is(tmp_path):
    sample = packing.gptq(rng())
    around = {"a": np.ones(2, np.float32)}, {f"{BASE}.bias": np.ones(32, np.float16)}
    sample = sample._replace(tensors=around[0] | sample.tensors | around[1])
    with open_checkpoint(write(tmp_path, sample)) as checkpoint:
        assert list(checkpoint.tensors) == ["a", WEIGHT, f"{BASE}.bias"]
        assert list(checkpoint.stored) == list(sample.tensors)
        info = checkpoint.tensors[WEIGHT]
        assert (info.dtype, info.shape, info.numel, info.is_weight) == ("GPTQ4", (32, 64), 2048, True)
        assert (info.role.type, info.role.kind, info.stated_bits) == ("attention", "q", 4)
        assert info.nbytes == 1024 + 32 + 128
        assert checkpoint.total_parameters == 2 + 2048 + 32
        note = "tensors packed as GPTQ4, 4 bits, a scale for 1 x 32 values: 1"
        assert checkpoint.notes == (note,)


def test_parts_in_several_shards_and_behind_settings_of_the_text_model(tmp_path):
    sample = packing.gptq(rng())
    config = {"text_config": {"quantization_config": sample.settings}}
    write_model(tmp_path, sample.tensors, shards=3, config=config)
    with open_checkpoint(tmp_path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.array(WEIGHT), sample.values)


def test_parts_that_pytorch_stored_transposed_or_shares(tmp_path):
    sample = packing.gptq(rng())
    parts = {name: torch.from_numpy(value) for name, value in sample.tensors.items()}
    parts[f"{BASE}.qweight"] = parts[f"{BASE}.qweight"].T.contiguous().T
    shared = {name.replace("q_proj", "k_proj"): part for name, part in parts.items()}
    torch.save(parts | shared, tmp_path / "pytorch_model.bin")
    config = {"quantization_config": sample.settings}
    write_model(tmp_path / "other", {"a": np.ones(1)}, config=config)
    (tmp_path / "other" / "config.json").rename(tmp_path / "config.json")
    with open_checkpoint(tmp_path) as checkpoint:
        twin = WEIGHT.replace("q_proj", "k_proj")
        assert (checkpoint.tensors[WEIGHT].alias_of, checkpoint.tensors[twin].alias_of) == (None, WEIGHT)
        assert checkpoint.total_parameters == sample.values.size
        for name in (WEIGHT, twin):
            np.testing.assert_array_equal(checkpoint.array(name), sample.values)


def test_fp8_without_scales_is_read_as_it_is(tmp_path):
    sample = packing.fp8(rng())
    del sample.tensors[f"{WEIGHT}_scale_inv"]
    with open_checkpoint(write(tmp_path, sample)) as checkpoint:
        assert checkpoint.tensors is checkpoint.stored
        assert checkpoint.tensors[WEIGHT].dtype == "F8_E4M3"


def test_stored_blocks_and_file_digests_are_those_of_the_files(tmp_path):
    folder = write(tmp_path, packing.SAMPLES["nf4-nested"](rng()))
    with open_checkpoint(folder) as checkpoint:
        raw = b"".join(block.words.tobytes() for block in checkpoint.blocks(stored=True))
        file = (folder / "model.safetensors").read_bytes()
        assert file.endswith(raw)
        for options in ({"stored": True}, {"include_integer": True}):
            digest = ContentDigest(checkpoint)
            for block in checkpoint.blocks(**options):
                digest.update(block)
            assert digest.finish() == (hashlib.sha256(file).digest(),)


def test_a_sample_of_packed_values_is_that_of_the_decoded_model(tmp_path):
    sample = packing.awq(rng())
    write(tmp_path / "packed", sample)
    write_model(tmp_path / "plain", {WEIGHT: sample.values})
    found = []
    for name in ("packed", "plain"):
        with open_checkpoint(tmp_path / name) as checkpoint:
            found.append(Selection.of(checkpoint, 300).values(checkpoint))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("scheme", ["gptq4", "nf4-nested", "mxfp4"])
def test_packed_models_stream_from_the_hub(scheme, tmp_path, monkeypatch):
    sample = packing.SAMPLES[scheme](rng())
    folder = write(tmp_path / "model", sample, shards=2)
    with Hub({"org/model": {path.name: path.read_bytes() for path in folder.iterdir()}}) as hub:
        reach(hub, monkeypatch, tmp_path / "home")
        with open_checkpoint("org/model") as checkpoint:
            values = [block.values.copy() for block in checkpoint.blocks()]
            np.testing.assert_array_equal(np.concatenate(values), sample.values.ravel())
            np.testing.assert_array_equal(checkpoint.array(sample.name), sample.values)


def test_a_file_by_itself_lacks_the_settings_that_most_schemes_need(tmp_path):
    for scheme, refused in (("gptq4", True), ("nf4", False)):
        folder = write(tmp_path / scheme, packing.SAMPLES[scheme](rng()))
        body = (folder / "model.safetensors").read_bytes()
        with (
            Server({"/model.safetensors": body}) as server,
            open_checkpoint(server.url("/model.safetensors"), offline=False) as checkpoint,
        ):
            assert any(info.refusal for info in checkpoint.tensors.values()) is refused


FOREIGN = {
    "EXL2": {"q_weight": np.zeros((8, 8), np.int32), "q_scale": np.zeros((1, 8), np.int32)},
    "EXL3": {"trellis": np.zeros((8, 8, 8), np.int16), "suh": np.zeros(8, np.float16)},
    "HQQ": {"W_q": np.zeros((8, 8), np.uint8), "scale": np.zeros((8, 1), np.float16)},
    "AQLM": {"codes": np.zeros((8, 8, 1), np.int8), "codebooks": np.zeros((1, 256, 1, 8), np.float16)},
    "QuIP#": {"Qidxs": np.zeros((8, 8), np.int64), "SU": np.zeros(8, np.float16)},
    "VPTQ": {"indices": np.zeros((8, 8), np.int64), "centroids.weight": np.zeros((8, 8), np.float16)},
    "Marlin": {"B": np.zeros((8, 8), np.int32), "s": np.zeros((1, 8), np.float16)},
    "2:4 sparse": {"compressed": np.zeros((8, 4), np.int8), "bitmask": np.zeros((8, 1), np.uint8)},
    "torchao": {"weight._data": np.zeros((8, 8), np.int8)},
    "eetq": {"weight": np.zeros((8, 8), np.int8), "weight_scales": np.zeros(8, np.float16)},
    "modelopt": {"weight": np.zeros((8, 8), np.uint8), "weight_scale": np.zeros((8, 1), np.float32)},
}


@pytest.mark.parametrize("scheme", FOREIGN)
def test_what_nothing_decodes_is_listed_and_refused_by_name(scheme, tmp_path):
    tensors = {f"{BASE}.{leaf}": value for leaf, value in FOREIGN[scheme].items()}
    tensors |= {f"{BASE}.bias": np.ones(8, np.float32), "model.norm.weight": np.ones(8, np.float32)}
    settings = {} if scheme not in {"torchao", "eetq", "modelopt"} else {"quant_method": scheme}
    folder = write(tmp_path, packing.Sample(tensors, settings, np.empty(0)))
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == list(tensors)
        assert checkpoint.total_parameters == 16
        assert scheme in checkpoint.notes[-1]
        with pytest.raises(errors.PackedFormatUnsupported, match=scheme) as caught:
            next(MemoryEfficientParameterStreamer().stream(checkpoint))
        assert caught.value.exit_code == 2
        with pytest.raises(errors.PackedFormatUnsupported, match=scheme):
            next(checkpoint.blocks())
        assert Selection.of(checkpoint, layers=["normalization"]).total == 8
        assert len(list(checkpoint.blocks(stored=True))) == len(tensors)


def test_integers_that_are_no_weights_are_left_alone(tmp_path):
    tensors = {
        "model.embeddings.position_ids": np.zeros((1, 9), np.int32),
        "model.table": np.zeros((4, 9), np.int64),
        "model.counts": np.zeros(9, np.int32),
        "model.w": np.ones(3, np.float32),
    }
    folder = write(tmp_path, packing.Sample(tensors, {"quant_method": "fp8"}, np.empty(0)))
    with open_checkpoint(folder) as checkpoint:
        assert not any(info.refusal for info in checkpoint.tensors.values())
        assert checkpoint.notes == ()


def test_rows_too_long_to_decode_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hilm.weights.packed.MAX_COLUMNS", 63)
    with (
        open_checkpoint(write(tmp_path, packing.gptq(rng()))) as checkpoint,
        pytest.raises(errors.PackedFormatUnsupported, match="rows of 64 values"),
    ):
        list(checkpoint.blocks())


def test_eight_bit_integers_without_settings_are_refused_if_they_have_scales(tmp_path):
    tensors = {WEIGHT: np.zeros((8, 8), np.int8), f"{WEIGHT}_scale": stored(np.ones(8, np.float32), "BF16")}
    with (
        open_checkpoint(write_model(tmp_path, tensors)) as checkpoint,
        pytest.raises(errors.PackedFormatUnsupported, match="no quantization_config"),
    ):
        checkpoint.array(WEIGHT)
