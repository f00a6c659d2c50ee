from __future__ import annotations

import copy
import hashlib
import math

import numpy as np
import pytest

from hilm.errors import HeaderError
from hilm.reel.layout import coded_view
from hilm.reel.manifest import CODING, canonical_json, parse_manifest
from hilm.reel.records import RECORD, Kind, check_records

ZEROS = "0" * 64


def tensor_of(name="w", shape=(4, 8), dtype="F32", slabs=((0, 4, 0, 2),), **others):
    return {
        "name": name,
        "dtype": dtype,
        "shape": list(shape),
        "nbytes": math.prod(coded_view(dtype, shape)),
        "coder": "symbols",
        "slabs": [list(slab) for slab in slabs],
        "sha256": hashlib.sha256(dtype.encode()).hexdigest(),
        "bits": 100,
        **others,
    }


def sample_of(frame=0, fill=100, record=0, **others):
    return {
        "frame_index": frame,
        "model_id": f"model {frame}",
        "original_parameter_count": 1000,
        "frame_timestamp": frame / 5,
        "model_metadata": {},
        "grid_side": 16,
        "fill": fill,
        "scale": 0.0625,
        "rule": {"name": "spread", "values": fill},
        "record": record,
        "source_digest": ZEROS,
        "deleted": False,
        **others,
    }


def manifest_of(*tensors, files=(), **others):
    return {
        "format": "hilm-reel",
        "version": [1, 0],
        "mode": "archive",
        "carrier": "packed",
        "generation": 1,
        "writer": {"hilm": "0.1.0"},
        "settings": {},
        "coding": copy.deepcopy(CODING),
        "source": {"digest": ZEROS, "content_key": ZEROS, "files": list(files), "metadata": {}},
        "base": None,
        "companion": None,
        "front": None,
        "tensors": list(tensors),
        "totals": {"weights": 32, "bytes_source": 128},
        **others,
    }


def file_of(*segments, name="model.safetensors", size=138):
    return {"name": name, "size": size, "sha256": ZEROS, "segments": [list(s) for s in segments]}


def front_of(**changes):
    frame = {"tensor": "w", "scale": 0.5, "sampled": False}
    front = {"size": 9, "crc32c": "0x0000beef", "codec": "vp9", "pixel_format": "yuv420p"}
    return front | {"width": 512, "height": 576, "fps": [5, 1], "frames": [frame]} | changes


def index_of(*records):
    """Records as (kind, elements[, size]), one behind the other."""
    index = np.zeros(len(records), RECORD)
    for entry, (kind, elements, *size) in zip(index, records, strict=True):
        entry["kind"], entry["elements"], entry["size"] = kind, elements, size[0] if size else 10
    index["offset"] = 64 + np.cumsum(index["size"]) - index["size"]
    return index


PLAIN = index_of((Kind.HEAD, 0), (Kind.DATA, 32))


def refused(document, index=PLAIN):
    with pytest.raises(HeaderError) as caught:
        check_records(parse_manifest(canonical_json(document)), index)
    return caught.value.code
