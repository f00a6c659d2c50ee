"""Reels whose symbols ride in a video: bits, pixels, and what is said when the video is not what it was."""

from __future__ import annotations

import json
import shutil

import av
import numpy as np
import pytest

from hilm.errors import (
    ChecksumMismatch,
    HeaderError,
    MissingCompanion,
    UnsafePath,
    UsageError,
    VerificationError,
)
from hilm.reel.carrier import CARRIERS, LAYOUTS, Placement
from hilm.reel.container import ReelFile
from hilm.reel.decoder import Reel
from hilm.reel.encoder import encode_archive, encode_small
from hilm.reel.manifest import canonical_json
from hilm.reel.rate import Rounding
from hilm.reel.records import Kind
from hilm.reel.verification import verify_reel
from hilm.weights.checkpoint import open_checkpoint
from tests.reel.archives import contents, decode
from tests.reel.files import rewrite, setting
from tests.servers import Server
from tests.tiny import stored, write_model

SHAPE = 530, 1000  # two rows of tiles, three frames; the last is partly filled in every layout
KINDS = ("archive", "tcq", "ecsq")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(SHAPE).astype(np.float32)
    weights[7, 9] = 175.0  # an escape
    tensors = {
        "bf16": stored(weights, "BF16"),
        "f32": stored(weights),
        "u8": stored(rng.integers(0, 250, SHAPE).astype(np.uint8)),
        "i32": stored(rng.integers(-90, 90, SHAPE).astype(np.int32)),
        "i64": stored(rng.integers(-(1 << 62), 1 << 62, (300, 300))),
        "bias": stored(weights[0]),
        "zero": stored(np.zeros(SHAPE, np.float32)),
    }
    return write_model(tmp_path_factory.mktemp("model") / "m", tensors, config={})


@pytest.fixture(scope="module")
def film(model, tmp_path_factory):
    """Encode once with each set of options."""
    folder, made = tmp_path_factory.mktemp("reels"), {}

    def make(carrier, layout="auto", kind="archive"):
        out = folder / f"{carrier}-{layout}-{kind}.reel.mp4"
        if out not in made:
            options = {"preview": False, "threads": 2, "carrier": carrier, "layout": layout}
            with open_checkpoint(model) as checkpoint:
                if kind == "archive":
                    made[out] = encode_archive(checkpoint, out, **options)
                else:
                    rounding = Rounding(bits=3.5, quantiser=kind, effort=1)
                    made[out] = encode_small(checkpoint, out, rounding, **options)
        return made[out].reel

    return make


@pytest.fixture
def reel(film, tmp_path):
    """A reel and its companion that may be damaged."""
    path = film("ffv1").path
    for suffix in (".mp4", ".mkv"):
        shutil.copy(path.with_suffix(suffix), tmp_path / f"x.reel{suffix}")
    shutil.copy(path.with_suffix(".mkv"), tmp_path / path.with_suffix(".mkv").name)
    return tmp_path / "x.reel.mp4", tmp_path / path.with_suffix(".mkv").name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_every_bit_comes_back(model, film, tmp_path, carrier, layout):
    decode(film(carrier, layout).path, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("carrier", ["packed", *CARRIERS])
def test_what_is_carried_is_verified(model, film, carrier, kind):
    with Reel.open(film(carrier, kind=kind).path) as reel, open_checkpoint(model) as checkpoint:
        report = verify_reel(reel, checkpoint)
        assert report.ok, report.bad
        entries, index = reel.tensors, reel.file.index
    rounded = {"archive": "symbols"}.get(kind, kind)
    coders = {name: entry["coder"] for name, entry in entries.items()}
    assert coders == dict.fromkeys(("bf16", "f32"), rounded) | dict.fromkeys(
        ("u8", "i32", "bias"), "symbols"
    ) | {
        "i64": "raw",
        "zero": "const",
    }
    films = {name for name, entry in entries.items() if "layout_gain" in entry}
    assert films == (set() if carrier == "packed" else {"bf16", "f32", "u8", "i32"})
    assert np.count_nonzero(index["kind"] == Kind.PACKET) == (0 if carrier == "packed" else 12)


@pytest.mark.parametrize("kind", ["tcq", "ecsq"])
def test_rounding_costs_the_same_error_in_every_carrier(film, kind):
    errors = []
    for carrier in ("packed", "ffv1"):
        with Reel.open(film(carrier, kind=kind).path) as reel:
            errors.append(reel.file.manifest["totals"]["nmse"])
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_any_player_sees_the_symbols(model, film, carrier, layout):
    path = film(carrier, layout).path
    with av.open(path.with_suffix(CARRIERS[carrier].suffix or ".mp4")) as video:
        assert video.streams.video[0].codec_context.name == carrier
        planes = [frame.planes[0] for frame in video.decode(video=0)]
        frames = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, :512] for plane in planes]
    assert len(frames) == 12
    with Reel.open(path) as reel, open_checkpoint(model) as checkpoint:
        order = [name for name in reel.tensors if "layout_gain" in reel.tensors[name]]
        place = Placement(*SHAPE, reel.tensors["u8"]["layout"])
        values = place.arrange(checkpoint.words("u8"))
    shown = frames[3 * order.index("u8") :][:3]
    read = np.concatenate([place.read(n, frame) for n, frame in enumerate(shown)])
    assert (read == values).all()
    assert all((frame == place.draw(n, place.read(n, frame), 0)).all() for n, frame in enumerate(shown))


@pytest.mark.parametrize("carrier", CARRIERS)
def test_bits_count_what_rides_in_the_video(film, carrier):
    facts = film(carrier)
    companion = facts.path.with_suffix(CARRIERS[carrier].suffix or ".none")
    sizes = [path.stat().st_size for path in (facts.path, companion) if path.exists()]
    assert facts.size == sum(sizes)
    assert len(sizes) == (1 if carrier == "vp9" else 2)
    with Reel.open(facts.path) as reel:
        totals, index = reel.file.manifest["totals"], reel.file.index
        tensors = sum(entry["bits"] for entry in reel.tensors.values())
    blobs = index[index["kind"] == Kind.BLOB]
    assert tensors // 8 + int(blobs["size"].sum()) + blobs.nbytes < totals["bytes_payload"] <= facts.size
    packets = int(index["size"][index["kind"] == Kind.PACKET].sum())
    assert tensors // 8 > packets > facts.size // 10


def test_results_depend_on_no_threads(model, tmp_path):
    made = []
    for threads in (1, 3):
        out = tmp_path / str(threads) / "x.reel.mp4"
        out.parent.mkdir()
        with open_checkpoint(model) as checkpoint:
            encode_archive(checkpoint, out, preview=False, threads=threads, carrier="ffv1")
        made.append([path.read_bytes() for path in sorted(out.parent.iterdir())])
    assert made[0] == made[1]
    assert len(made[0]) == 2


def test_one_tensor_and_some_rows_are_read(film, model):
    with Reel.open(film("utvideo").path) as reel, open_checkpoint(model) as checkpoint:
        assert (reel.words("f32") == checkpoint.words("f32")).all()
        assert (reel.words("f32", (3, 5)) == checkpoint.words("f32")[3 * 4000 : 5 * 4000]).all()


def test_a_remote_reel_finds_its_companion(film, model, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    path = film("ffv1").path
    files = {f"/a/{p.name}": p.read_bytes() for p in (path, path.with_suffix(".mkv"))}
    with Server(files) as server, open_checkpoint(model) as checkpoint:
        with Reel.open(server.url(f"/a/{path.name}")) as reel:
            assert (reel.words("u8") == checkpoint.words("u8")).all()
        del server.files[f"/a/{path.with_suffix('.mkv').name}"]
        with pytest.raises(MissingCompanion):
            Reel.open(server.url(f"/a/{path.name}"))


def test_a_reel_without_its_companion_says_which_it_wants(reel):
    path, companion = reel
    companion.unlink()
    with pytest.raises(MissingCompanion, match=companion.name):
        Reel.open(path)
    companion.with_name("x.reel.mkv").rename(companion)
    with Reel.open(path) as opened:
        assert verify_reel(opened).ok


def test_a_companion_of_another_size_is_refused(reel):
    path, companion = reel
    companion.write_bytes(companion.read_bytes()[:-1])
    with pytest.raises(ChecksumMismatch, match="bytes where"):
        Reel.open(path)


def test_every_flipped_bit_of_a_companion_is_found(reel):
    path, companion = reel
    raw, rng = companion.read_bytes(), np.random.default_rng(0)
    with Reel.open(path) as opened:
        index = opened.file.index
        truth = {name: opened.words(name).tobytes() for name in opened.tensors}
    packets = index[index["kind"] == Kind.PACKET]
    for place in [*rng.integers(0, len(raw), 8).tolist(), int(packets["offset"][5]) + 100]:
        damaged = bytearray(raw)
        damaged[place] ^= 1 << int(rng.integers(8))
        companion.write_bytes(damaged)
        with Reel.open(path) as opened:
            report = verify_reel(opened)
            assert any(companion.name in bad for bad in report.bad)
            for name, words in truth.items():
                try:
                    assert opened.words(name).tobytes() == words
                except VerificationError:
                    assert any(name in bad for bad in report.bad)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [("file", "../x.mkv", UnsafePath), ("file", "..", UnsafePath), ("codec", "h264", HeaderError),
     ("size", 7, HeaderError), ("extradata", "00", VerificationError)],
)  # fmt: skip
def test_a_manifest_that_lies_about_its_companion_is_refused(reel, field, value, error):
    path, _ = reel

    def change(manifest, index):
        document = json.loads(manifest)
        document["companion"][field] = value
        return canonical_json(document), index

    path.write_bytes(rewrite(path.read_bytes(), change))
    with pytest.raises(error), Reel.open(path) as opened:
        opened.words("u8")


@pytest.mark.parametrize(
    ("column", "value"),
    [("file", 0), ("offset", 1), ("size", 1 << 30), ("elements", 5), ("kind", Kind.DATA)],
)
def test_an_index_that_lies_about_packets_is_refused(reel, column, value):
    path, _ = reel
    with ReelFile.open(path) as file:
        number = int(np.flatnonzero(file.index["kind"] == Kind.PACKET)[3])
    path.write_bytes(rewrite(path.read_bytes(), setting(column, number, value)))
    with pytest.raises(HeaderError):
        ReelFile.open(path)


@pytest.mark.parametrize("carrier", ["ffv1", "vp9"])
def test_an_interrupted_film_leaves_nothing(model, tmp_path, carrier):
    def stop(_):
        raise UsageError("enough")

    out = tmp_path / "x.reel.mp4"
    with open_checkpoint(model) as checkpoint, pytest.raises(UsageError):
        encode_archive(checkpoint, out, preview=False, threads=1, carrier=carrier, sinks=[stop])
    assert list(tmp_path.iterdir()) == []
