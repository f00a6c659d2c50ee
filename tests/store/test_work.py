from __future__ import annotations

import numpy as np
import pytest

from hilm.errors import EmptySelection, PackedFormatUnsupported, SourceChanged
from hilm.reel.decoder import Reel, decode_files
from hilm.reel.verification import verify_reel
from hilm.store.work import Job, entry_key, plain, run_job
from hilm.weights import Selection, open_checkpoint
from tests.store.conftest import tiny
from tests.tiny import stored, write_model
from tests.weights.packing import gptq_config, gptq_model


def sample(path, **options):
    return run_job(Job(str(path), path.name, "sample", "", **options)).sample


@pytest.mark.parametrize("limit", [1, 7, 500, 10_000_000])
@pytest.mark.parametrize("layers", [None, ("attention", "mlp")])
def test_a_sample_taken_in_passing_is_the_selection_read_by_itself(house, limit, layers):
    with open_checkpoint(house / "base") as checkpoint:
        expected = Selection.of(checkpoint, limit, layers).values(checkpoint)
    found = sample(house / "base", limit=limit, layers=layers)
    assert found.values.tobytes() == expected.tobytes()
    assert found.chunks == ()
    assert found.metadata == {"architectures": ["BertModel"]}


@pytest.mark.parametrize("limit", [500, 10_000_000])
def test_chunks_hold_the_same_values_one_frame_each(house, limit):
    whole, chunked = sample(house / "base", limit=limit), sample(house / "base", limit=limit, chunk_size=100)
    assert chunked.values.tobytes() == whole.values.tobytes()
    assert [len(values) for values, _ in chunked.frames()] == [c.parameter_count for c in chunked.chunks]
    assert max(c.parameter_count for c in chunked.chunks) <= 100
    for values, chunk in chunked.frames():
        if chunk.runs is None:
            tensor = tiny(1)[chunk.layer_name].ravel()
            assert np.array_equal(values, tensor[chunk.start_index : chunk.end_index])


@pytest.mark.parametrize(
    "tensors",
    [{"a": np.zeros(0, np.float32)}, {"a": np.zeros(4, np.int32)}, {}],
    ids=["empty", "integers", "none"],
)
def test_nothing_to_sample_is_an_empty_selection(tmp_path, tensors):
    write_model(tmp_path / "model", tensors)
    with pytest.raises(EmptySelection):
        sample(tmp_path / "model", limit=5)
    assert run_job(Job(str(tmp_path / "model"), "m", "index", "")).model["parameters"] == 0


def test_a_model_that_changes_while_it_is_read_is_refused(house, tmp_path):
    folder = write_model(tmp_path / "model", tiny(2))

    def tick(done, total, tensor):
        if done == total:
            with (folder / "model.safetensors").open("ab") as file:
                file.write(b"x")

    with pytest.raises(SourceChanged):
        run_job(Job(str(folder), "m", "index", ""), tick)


def test_threads_change_nothing(house):
    one, two = (run_job(Job(str(house / "base"), "m", "index", "", threads=n)) for n in (1, 2))
    assert one.model == two.model
    drop = {"seconds": 0, "position_vec": 0, "anchored_vec": 0}
    assert one.fingerprint | drop == two.fingerprint | drop
    assert np.array_equal(one.fingerprint["position_vec"], two.fingerprint["position_vec"])


def test_the_row_counts_every_weight_once_by_role(tmp_path):
    tensors = tiny() | {"position_ids": np.arange(16), "half": stored(np.ones(3, np.float32), "BF16")}
    row = run_job(Job(str(write_model(tmp_path / "m", tensors, shards=3)), "m", "index", "")).model
    assert row["parameters"] == sum(v.size for v in tiny().values()) + 3
    assert sum(role["parameters"] for role in row["role_counts"]) == row["parameters"]
    assert len(row["files"]) == 3
    assert row["bytes"] == sum(path.stat().st_size for path in (tmp_path / "m").glob("*.safetensors"))


@pytest.mark.parametrize("names", [["\ud800 odd"], "text", [], [7], {"a": 1}, ["x" * 100_000]], ids=type)
def test_an_odd_config_spoils_nothing(store, tmp_path, names):
    folder = write_model(
        tmp_path / "m", tiny(), config={"architectures": names, "base_model_name_or_path": "\udfff"}
    )
    assert store.encode([folder], mode="sample", max_params=9)["failed"] == []
    with Reel.open(store.reel("m")) as reel:
        assert len(reel.samples) == 1


def test_text_is_made_fit_to_store():
    assert plain("a\ud800é" + "x" * 2000) == ("a?é" + "x" * 2000)[:1000]


def test_an_entry_is_another_with_another_setting():
    keys = {
        entry_key(Job("/m", "m", mode, "", **options))
        for mode in ("archive", "sample")
        for options in ({}, {"preview": False}, {"limit": 5}, {"layers": ("mlp",)}, {"chunk_size": 9})
    }
    assert len(keys) == 10
    assert entry_key(Job("/m", "a", "archive", "x", threads=1)) == entry_key(
        Job("/m", "b", "archive", "y", threads=2)
    )


def test_a_packed_model_is_filmed_by_its_parts_and_recognised_by_its_values(tmp_path):
    packed, plain = gptq_model(tiny(1))
    folder = write_model(tmp_path / "packed", packed, config=gptq_config())
    write_model(tmp_path / "plain", plain)
    job = Job(str(folder), "packed", "archive", str(tmp_path))
    result = run_job(job)
    like = run_job(Job(str(tmp_path / "plain"), "plain", "index", ""))
    for figure in ("code", "position_vec", "tensor_codes", "profile", "coverage"):
        if figure != "tensor_codes":
            assert np.array_equal(result.fingerprint[figure], like.fingerprint[figure]), figure
    assert result.model["parameters"] == like.model["parameters"]
    (path,) = tmp_path.glob("*.reel.mp4")
    with Reel.open(path) as reel:
        decode_files(reel, tmp_path / "back")
        name = next(name for name in packed if name.endswith("qweight"))
        assert np.array_equal(reel.tensor(name), packed[name].astype(np.float32))
    for file in folder.iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
    with open_checkpoint(folder) as checkpoint, Reel.open(path) as reel:
        assert verify_reel(reel, checkpoint).ok


def test_what_cannot_be_decoded_is_archived_and_indexed_for_what_it_is(tmp_path):
    packed, _ = gptq_model(tiny(1))
    folder = write_model(tmp_path / "m", packed)  # without the settings
    row = run_job(Job(str(folder), "m", "archive", str(tmp_path))).fingerprint
    assert row["coverage"] < 0.9
    (path,) = tmp_path.glob("*.reel.mp4")
    with Reel.open(path) as reel, open_checkpoint(folder) as checkpoint:
        assert verify_reel(reel, checkpoint).ok
    with pytest.raises(PackedFormatUnsupported):
        run_job(Job(str(folder), "m", "sample", ""))
