from __future__ import annotations

import tempfile
import weakref
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest

from hilm.errors import InputError, UsageError
from hilm.reel.preview import draw_tensor
from hilm.reel.video import LADDER, decode_preview, encode_preview

CHAPTERS = [("embeddings", 0), ("layer 0", 2), ("layer 1", 5)]


def make_frames(count=7, size=4096):
    rng = np.random.default_rng(5)
    for number in range(count):
        values = rng.standard_normal(size).astype(np.float32)
        yield draw_tensor(values, name=f"t{number}", dtype="F32", shape=(size,), sampled=False).pixels


@pytest.fixture(scope="module")
def video() -> bytes:
    return encode_preview(make_frames(), chapters=CHAPTERS)


def top_level_atoms(data: bytes) -> list[bytes]:
    names, at = [], 0
    while at < len(data):
        names.append(data[at + 4 : at + 8])
        at += int.from_bytes(data[at : at + 4], "big")
    return names


def test_is_an_mp4_that_starts_playing_before_it_is_complete(video):
    atoms = top_level_atoms(video)
    assert atoms[0] == b"ftyp"
    assert atoms.index(b"moov") < atoms.index(b"mdat")


def test_plays_as_full_range_grey_vp9_of_key_frames(video):
    with av.open(BytesIO(video)) as container:
        (stream,) = container.streams.video
        assert stream.codec_context.codec.canonical_name == "vp9"
        assert (stream.width, stream.height, stream.frames) == (512, 576, 7)
        assert stream.average_rate == 5
        pictures = list(container.decode(stream))
    assert [float(picture.time) for picture in pictures] == pytest.approx([n / 5 for n in range(7)])
    for picture in pictures:
        assert picture.key_frame
        assert picture.format.name == "yuv420p"
        assert picture.color_range == 2
        assert np.all(np.frombuffer(picture.planes[1], np.uint8) == 128)
        assert np.all(np.frombuffer(picture.planes[2], np.uint8) == 128)
    box = video.index(b"vpcC") + 8
    assert video[box + 2] & 1 == 1  # the container says full range, too


def test_shows_the_frames_that_were_given(video):
    shown = list(decode_preview(video))
    assert len(shown) == 7
    for decoded, frame in zip(shown, make_frames(), strict=True):
        assert np.abs(decoded.astype(int) - frame).mean() < 2
        assert np.abs(decoded[:512].astype(int) - frame[:512]).max() < 40


@pytest.mark.parametrize("grey", [0, 16, 128, 235, 255])
def test_flat_greys_come_back_as_they_are(grey):
    (shown,) = decode_preview(encode_preview([np.full((64, 64), grey, np.uint8)]))
    assert np.abs(shown.astype(int) - grey).max() <= 1


def test_chapters_are_where_they_were_put(video):
    with av.open(BytesIO(video)) as container:
        found = [
            (chapter["metadata"]["title"], chapter["start"] * chapter["time_base"] * 5)
            for chapter in container.chapters()
        ]
        last = container.chapters()[-1]
    assert found == CHAPTERS
    assert last["end"] * last["time_base"] == Fraction(7, 5)


def test_same_frames_give_same_bytes_and_no_clock(video):
    assert encode_preview(make_frames(), chapters=CHAPTERS) == video
    with av.open(BytesIO(video)) as container:
        assert "creation_time" not in container.metadata
        assert "encoder" not in container.metadata


def test_atoms_appended_behind_it_change_nothing(video):
    appended = video + b"\0\0\0\x40uuid" + bytes(range(56))
    for shown, expected in zip(decode_preview(appended), decode_preview(video), strict=True):
        np.testing.assert_array_equal(shown, expected)


def test_holds_one_frame_at_a_time():
    alive: list[weakref.ref] = []

    def stream():
        for number in range(30):
            assert sum(ref() is not None for ref in alive) <= 2
            frame = np.full((64, 64), number, np.uint8)
            alive.append(weakref.ref(frame))
            yield frame

    assert len(list(decode_preview(encode_preview(stream())))) == 30


def test_a_budget_makes_it_coarser_then_smaller(video):
    coarser = encode_preview(make_frames(), budget_bytes=len(video) * 3 // 4)
    smaller = encode_preview(make_frames(), budget_bytes=len(coarser) // 2)
    seen = []
    hopeless = encode_preview(
        iter(make_frames()), budget_bytes=1, again=lambda frame: seen.append(frame.shape) or frame
    )
    assert len(seen) == 7 * (len(LADDER) - 1)
    assert len(smaller) < len(coarser) < len(video)
    assert hopeless == smaller
    assert next(decode_preview(coarser)).shape == (576, 512)
    shown = list(decode_preview(smaller))
    assert [frame.shape for frame in shown] == [(288, 256)] * 7
    first = next(make_frames())[::2, ::2].astype(int)
    assert np.abs(shown[0] - first).mean() < 8


def test_a_budget_that_is_met_changes_nothing(video):
    assert encode_preview(make_frames(), chapters=CHAPTERS, budget_bytes=len(video)) == video


@pytest.mark.parametrize("side", [2, 4, 16])
def test_the_smallest_frames_survive_any_budget(side):
    frames = [np.full((side, side), 90, np.uint8)] * 3
    shown = list(decode_preview(encode_preview(frames, budget_bytes=1)))
    assert [frame.shape for frame in shown] == [(side // 2, side // 2)] * 3


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([], "no frames"),
        ([(63, 64)], "63 x 64"),
        ([(64, 63)], "64 x 63"),
        ([(64, 64), (64, 64), (64, 32)], "among"),
    ],
)
def test_frames_that_cannot_make_a_film_are_refused(sizes, words, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UsageError, match=words):
        encode_preview(np.zeros(size, np.uint8) for size in sizes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chapters", [[("a", 0), ("b", 0)], [("a", 2), ("b", 1)], [("a", 0), ("b", 3)]])
def test_chapters_out_of_order_or_past_the_end_are_refused(chapters):
    with pytest.raises(UsageError, match="chapters"):
        encode_preview([np.zeros((16, 16), np.uint8)] * 3, chapters=chapters)


@pytest.mark.parametrize("data", [b"", b"not a video", bytes(5000)])
def test_what_is_no_video_is_refused(data):
    with pytest.raises(InputError, match="unreadable video"):
        list(decode_preview(data))


def test_a_video_of_other_pixels_is_refused():
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libvpx-vp9", rate=5)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv444p"
        container.mux(stream.encode(av.VideoFrame(16, 16, "yuv444p")))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="yuv444p"):
        list(decode_preview(buffer.getvalue()))
