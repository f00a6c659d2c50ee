"""Pictures, clips and arrays as what models are fed: decoded exactly, oriented, fitted to the patch grid.

Pixels are ``(uint8 / 255 - mean) / std`` in float32 with CLIP's mean and std. Clips are decoded from start
to end, never by seeking: seeking by frame position returns wrong frames on transport streams.
"""

from __future__ import annotations

import hashlib
import math
import re
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hilm.errors import InputError, UsageError
from hilm.parity.pictures import read_clip, read_picture, recognise, resize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Frames = NDArray[np.uint8]

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
REDUCED_TOKENS, REDUCED_FRAMES = 1024, 4


@dataclass(frozen=True, slots=True)
class Reading:
    """How inputs become pixels.

    Attributes:
        num_frames: Frames sampled of each clip.
        patch: Side of a patch in pixels.
        size: Height and width of everything fed, for models with one input size; else native, fitted.
        fit: What happens to sides that are no multiple of the patch.
        frame_rounding: Whether evenly spaced frame numbers are rounded or cut.
        sampling: Whether frames are evenly spaced by number or by time.
        virtual_frames: Slots of the virtual clip that sampled frames are spread over.
        exif: Whether the orientation a camera noted is applied.
        rotation: Whether the rotation of a clip is applied.
        background: Colour behind transparent pixels.
        max_pixels: Largest picture that is decoded.
        allow_partial: Whether a clip that breaks midway is used up to there.
    """

    num_frames: int = 8
    patch: int = 14
    size: tuple[int, int] | None = None
    fit: Literal["resize", "crop", "pad", "error"] = "resize"
    frame_rounding: Literal["round", "floor"] = "round"
    sampling: Literal["index", "time"] = "index"
    virtual_frames: int = 64
    exif: Literal["apply", "ignore"] = "apply"
    rotation: Literal["apply", "ignore"] = "apply"
    background: str = "white"
    max_pixels: int = 178_956_970
    allow_partial: bool = False

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise UsageError(f"{self.num_frames} frames", hint="--num_frames takes 1 or more")
        if self.num_frames > self.virtual_frames:
            raise UsageError(
                f"{self.num_frames} frames do not fit {self.virtual_frames} virtual frames",
                hint=f"--virtual_frames {self.num_frames}",
            )


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    Attributes:
        name: What reports call it.
        kind: ``image``, ``video`` or ``arrays``.
        path: Where it came from.
        frames: uint8 ``[T, H, W, 3]`` as fed; of ``arrays`` none.
        patch: Side of a patch in pixels.
        slots: Place of each frame in the virtual clip.
        arrays: Keyword arguments for the model, of kind ``arrays``.
        facts: What was found and done, as ``metadata.json`` lists it.
        warnings: What a careful reader should know.
        adjustable: Whether a smaller cut of it suits the model too.
    """

    name: str
    kind: str
    path: str
    frames: Frames | None = None
    patch: int = 14
    slots: tuple[int, ...] = (0,)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    adjustable: bool = False

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of patches; of ``arrays`` none."""
        if self.frames is None:
            return (0, 0, 0)
        frames, height, width, _ = self.frames.shape
        return frames, height // self.patch, width // self.patch

    @property
    def tokens(self) -> int:
        """Patches, or values of the largest table of whole numbers."""
        tables = (array.size for array in self.arrays.values() if array.dtype.kind in "iu")
        return math.prod(self.grid) if self.frames is not None else max(tables, default=0)

    @property
    def pixels(self) -> NDArray[np.float32]:
        """Normalised float32 ``[1, 3, T, H, W]``."""
        if self.frames is None:
            raise UsageError(f"{self.name} has no pixels: it holds arrays")
        scaled = (self.frames.astype(np.float32) / np.float32(255) - MEAN) / STD
        return np.ascontiguousarray(scaled.transpose(3, 0, 1, 2)[None])

    def keys(self) -> NDArray[np.int32]:
        """Keys (sample, t, y, x) of the patches in frame, row, column order, ``[T h w, 4]``."""
        return grid_keys(*self.grid)

    def reduced(self) -> Item:
        """The centre of the first frames: at most 1,024 patches of at most 4 frames."""
        if self.frames is None or not self.adjustable:
            return self
        frames, rows, columns = self.grid
        frames = min(frames, REDUCED_FRAMES)
        while frames * rows * columns > REDUCED_TOKENS:
            rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
        top, left = ((full - part) // 2 for full, part in zip(self.grid[1:], (rows, columns), strict=True))
        p = self.patch
        cut = self.frames[:frames, top * p : (top + rows) * p, left * p : (left + columns) * p]
        return replace(self, frames=cut, slots=self.slots[:frames])


def grid_keys(frames: int, rows: int, columns: int, *, sample: int = 0) -> NDArray[np.int32]:
    """Keys (sample, t, y, x) of a grid in frame, row, column order, ``[T h w, 4]``."""
    places = np.indices((frames, rows, columns), np.int32).reshape(3, -1).T
    return np.concatenate([np.full((len(places), 1), sample, np.int32), places], axis=1)


def virtual_slots(frames: int, virtual: int) -> tuple[int, ...]:
    """Slots of evenly sampled frames in a virtual clip: ``rint(i / (n - 1) * (V - 1))``."""
    return tuple(np.rint(np.linspace(0, virtual - 1, frames)).astype(int).tolist()) if frames > 1 else (0,)


def parse_inputs(texts: Sequence[str]) -> list[tuple[str, str, str]]:
    """Read ``NAME=[image:|video:|arrays:]PATH`` texts as name, kind (or an empty text) and path.

    Raises:
        UsageError: A name is missing, illegal or used twice, or there is no input at all.
    """
    parsed = []
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not NAME.fullmatch(name) or not path:
            raise UsageError(f"{text!r} is no NAME=PATH", hint="names are of letters, digits and _ . -")
        kind, colon, rest = path.partition(":")
        forced = bool(colon) and kind in {"image", "video", "arrays"}
        parsed.append((name, kind if forced else "", rest if forced else path))
    names = [name for name, _, _ in parsed]
    if not names:
        raise UsageError("no input to run on", hint="--input cat=cat.jpg")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two inputs are called {twice!r}", hint="give every input its own name")
    return parsed


def recognise_inputs(inputs: Sequence[tuple[str, str, str]]) -> list[str]:
    """Say what kind every input is, by its content where that was not said.

    Raises:
        InputError: A file is not there, not readable, or not what it is said to be.
    """
    return [recognise(Path(path), kind) for _, kind, path in inputs]


def read_inputs(inputs: Sequence[tuple[str, str, str]], reading: Reading) -> list[Item]:
    """Decode and fit every input; all are looked at before the first is decoded.

    Args:
        inputs: Name, kind (an empty text: by content) and path of each.
        reading: How.

    Raises:
        InputError: A file is not there, not readable, or not what it is said to be.
    """
    kinds = recognise_inputs(inputs)
    return [
        _read(name, kind, Path(path), reading) for kind, (name, _, path) in zip(kinds, inputs, strict=True)
    ]


def _read(name: str, kind: str, path: Path, reading: Reading) -> Item:
    if kind == "arrays":
        arrays = read_arrays(path)
        shapes = {n: list(a.shape) for n, a in arrays.items()}
        return Item(name, kind, str(path), arrays=arrays, facts={"shapes": shapes})
    if kind == "image":
        picture, facts, warnings = read_picture(path, reading)
        frames = picture[None]
    else:
        frames, facts, warnings = read_clip(path, reading)
    fitted = fit_frames(path, frames, reading)
    count, height, width, _ = fitted.shape
    slots = virtual_slots(count, reading.virtual_frames)
    p = reading.patch
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {
        "path": str(path),
        "width": frames.shape[2],
        "height": frames.shape[1],
        **facts,
        "shape": [1, 3, height, width] if kind == "image" else [1, 3, count, height, width],
        "kind": kind,
        "sha256": digest,
        "model_width": width,
        "model_height": height,
        "grid_thw": [count, height // p, width // p],
        "tokens": count * (height // p) * (width // p),
        "fit": reading.fit if reading.size is None else "size",
        "warnings": warnings,
    }
    if kind == "video":
        facts["slots"] = list(slots)
    own, notes = reading.size is None, tuple(warnings)
    return Item(name, kind, str(path), fitted, p, slots, facts=facts, warnings=notes, adjustable=own)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an npz file of plain arrays.

    Raises:
        InputError: It is no npz file, damaged, or holds Python objects.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError, EOFError, MemoryError) as error:
        raise InputError(f"{path}: no npz file of plain arrays", hint="numpy.savez writes one") from error


def fit_frames(path: Path, frames: Frames, reading: Reading) -> Frames:
    """Fit ``[T, H, W, 3]`` to whole patches, or to the one size a model takes.

    Raises:
        InputError: A side is too small to be cropped, or the fit is ``error`` and a side is no multiple.
    """
    p, height, width = reading.patch, frames.shape[1], frames.shape[2]
    if reading.size is not None:
        return frames if (height, width) == reading.size else resize(frames, *reading.size)
    if height % p == 0 and width % p == 0:
        return frames
    up, down = (-height % p, -width % p), (height % p, width % p)
    match reading.fit:
        case "resize":
            return resize(frames, height + up[0], width + up[1])
        case "pad":
            return np.pad(frames, ((0, 0), (0, up[0]), (0, up[1]), (0, 0)))
        case "crop" if min(height, width) >= p:
            top, left = down[0] // 2, down[1] // 2
            return frames[:, top : top + height - down[0], left : left + width - down[1]]
    raise InputError(f"{path}: {width} x {height} pixels do not cut into patches of {p}", hint="--fit resize")
