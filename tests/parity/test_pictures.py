from __future__ import annotations

import subprocess
import sys
import wave
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image

from hilm.errors import InputError
from hilm.parity.inputs import Reading
from hilm.parity.pictures import read_clip, read_picture, recognise, sample_frames
from tests.parity.media import CONTAINERS, cut_mp4, read_number, write_clip, write_picture

READING = Reading()


@pytest.mark.parametrize(
    ("name", "uneven"),
    [
        (n, u) for n in CONTAINERS for u in (False, True) if not (u and n.endswith(("avi", "ts")))
    ],  # even rates
)
def test_the_frames_are_those_that_were_asked_for(tmp_path, name, uneven):
    path = write_clip(tmp_path / name, 45, uneven=uneven)
    frames, facts, warnings = read_clip(path, READING)
    expected = [0, 6, 13, 19, 25, 31, 38, 44]
    assert facts["frame_indices"] == expected
    assert [read_number(frame) for frame in frames] == expected
    assert ("frames are not evenly spaced in time" in warnings) == uneven


def test_documented_indices():
    assert sample_frames(240, READING) == [0, 34, 68, 102, 137, 171, 205, 239]
    cut = replace(READING, frame_rounding="floor")
    assert sample_frames(240, cut) == [0, 34, 68, 102, 136, 170, 204, 239]


@pytest.mark.parametrize(("total", "expected"), [(1, [0] * 8), (3, [0, 0, 1, 1, 1, 1, 2, 2])])
def test_short_clips_repeat_frames(tmp_path, total, expected):
    frames, facts, warnings = read_clip(write_clip(tmp_path / "short.mp4", total), READING)
    assert facts["frame_indices"] == expected
    assert [read_number(frame) for frame in frames] == expected
    assert facts["duplicates"] == 8 - total
    assert any("repeat" in warning for warning in warnings)


def test_sampling_by_time(tmp_path):
    path = write_clip(tmp_path / "plain.mkv", 40, uneven=True)
    frames, facts, _ = read_clip(path, replace(READING, sampling="time", num_frames=4))
    assert [read_number(frame) for frame in frames] == facts["frame_indices"]
    times = np.array(facts["frame_times"])
    assert np.abs(np.diff(times) - np.diff(times).mean()).max() < 2 / 30


def test_a_container_that_lies_about_its_frames(tmp_path):
    path = write_clip(tmp_path / "plain.avi", 30)
    data = bytearray(path.read_bytes())
    for tag, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        place = data.index(tag) + offset
        assert int.from_bytes(data[place : place + 4], "little") == 30
        data[place : place + 4] = (99).to_bytes(4, "little")
    path.write_bytes(data)
    frames, facts, warnings = read_clip(path, READING)
    assert (facts["total_frames"], facts["container_frames"]) == (30, 99)
    assert [read_number(frame) for frame in frames] == facts["frame_indices"] == sample_frames(30, READING)
    assert any("announces 99" in warning for warning in warnings)


@pytest.mark.parametrize("name", ["plain.mp4", "b-frames.mp4"])
def test_an_edit_list_cuts_the_beginning(tmp_path, name):
    path = write_clip(tmp_path / name, 45)
    cut_mp4(path, 5)
    frames, facts, warnings = read_clip(path, READING)
    assert (facts["total_frames"], facts["container_frames"]) == (40, 45)
    assert facts["frame_indices"] == sample_frames(40, READING)
    assert [read_number(frame) for frame in frames] == [5 + index for index in facts["frame_indices"]]
    assert "the container announces 45 frames, 40 were decoded" in warnings


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_clips_are_turned_upright(tmp_path, degrees):
    plain = read_clip(write_clip(tmp_path / "plain.mp4", 9), READING)[0]
    path = write_clip(tmp_path / "turned.mp4", 9, rotation=degrees)
    frames, facts, _ = read_clip(path, READING)
    assert abs(facts["rotation"]) in {90, 180}
    turns = round(facts["rotation"] / 90) % 4
    assert turns
    assert np.array_equal(frames, np.rot90(plain, turns, axes=(1, 2)))
    assert np.array_equal(read_clip(path, replace(READING, rotation="ignore"))[0], plain)


def test_a_clip_that_breaks_midway(tmp_path):
    path = write_clip(tmp_path / "plain.webm", 60)
    with av.open(str(path)) as container:
        broken = next(packet for number, packet in enumerate(container.demux(video=0)) if number == 40)
        payload = bytes(broken)
    data = path.read_bytes()
    assert data.count(payload) == 1
    path.write_bytes(data.replace(payload, b"\xff" * len(payload)))
    with pytest.raises(InputError, match="decoding fails after frame 39"):
        read_clip(path, READING)
    frames, facts, warnings = read_clip(path, replace(READING, allow_partial=True))
    assert facts["total_frames"] == 40
    assert "the frames before it are used" in warnings[0]
    assert [read_number(frame) for frame in frames] == facts["frame_indices"] == sample_frames(40, READING)


def test_what_is_no_picture_and_no_clip(tmp_path):
    text, sound, empty = tmp_path / "a.mp4", tmp_path / "b.wav", tmp_path / "c.png"
    text.write_text("not a film\n" * 100)
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    empty.touch()
    for path, kind, reason in (
        (text, "", "not a picture or a video"),
        (text, "image", "not a picture"),
        (text, "video", "not a video"),
        (sound, "video", "no video stream"),
        (empty, "", "the file is empty"),
        (tmp_path, "", "a directory"),
        (tmp_path / "none.png", "", "there is no such file"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            recognise(path, kind)
        assert str(path) in str(caught.value)


def test_a_picture_is_no_clip(tmp_path):
    path = write_picture(tmp_path / "a.png")
    assert recognise(path) == "image"


def test_sixteen_bit_grey_is_scaled(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    pixels, facts, _ = read_picture(tmp_path / "ramp.png", READING)
    assert facts["mode"] == "I;16"
    assert np.abs(pixels[0, :, 0].astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "1"])
def test_every_common_mode_becomes_rgb(tmp_path, mode):
    write_picture(tmp_path / "a.png", mode=mode)
    pixels, facts, _ = read_picture(tmp_path / "a.png", READING)
    assert (pixels.shape, pixels.dtype, facts["mode"]) == ((56, 70, 3), np.uint8, mode)


def test_cmyk_is_converted(tmp_path):
    write_picture(tmp_path / "a.jpg", mode="CMYK")
    assert read_picture(tmp_path / "a.jpg", READING)[1]["mode"] == "CMYK"


def test_transparency_lies_on_the_background(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png", READING)[0] == 255).all()
    assert (read_picture(tmp_path / "a.png", replace(READING, background="black"))[0] == 0).all()
    with pytest.raises(InputError, match="no colour"):
        read_picture(tmp_path / "a.png", replace(READING, background="nonsense"))


def test_the_orientation_of_a_camera_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_picture(tmp_path / "a.jpg", 70, 56, exif=exif)
    upright, facts, _ = read_picture(tmp_path / "a.jpg", READING)
    lying, _, _ = read_picture(tmp_path / "a.jpg", replace(READING, exif="ignore"))
    assert (upright.shape, lying.shape, facts["exif_orientation"]) == ((70, 56, 3), (56, 70, 3), 6)
    assert np.array_equal(upright, np.rot90(lying, -1))


def test_an_animation_is_its_first_frame(tmp_path):
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    pixels, _, warnings = read_picture(tmp_path / "a.gif", READING)
    assert (pixels[..., 0] > 200).all()
    assert warnings == ["animated: its first frame is used"]


def test_damaged_large_and_exotic_pictures_are_refused(tmp_path):
    whole = write_picture(tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged picture"):
        read_picture(tmp_path / "cut.png", READING)
    with pytest.raises(InputError, match="70 x 56"):
        read_picture(tmp_path / "a.png", replace(READING, max_pixels=100))
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(InputError, match="mode F"):
        read_picture(tmp_path / "f.tiff", READING)


def test_importing_needs_neither_torch_nor_av_nor_pillow():
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'av', 'PIL', 'onnxruntime'): sys.modules[name] = None\n"
        "import hilm.parity.metrics, hilm.parity.features, hilm.parity.inputs, hilm.parity.engine"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
