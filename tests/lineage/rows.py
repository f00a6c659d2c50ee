"""Rows of the catalog's tables, a function of one number."""

from __future__ import annotations

import hashlib

import numpy as np

RUN = bytes(16)


def digest(kind, number):
    return hashlib.sha256(f"{kind} {number}".encode()).digest()


def fingerprint(number, **changes):
    rng = np.random.default_rng(number)
    return {
        "fingerprint_key": digest("fingerprint", number),
        "content_key": digest("content", number),
        "spec_version": 1,
        "code": rng.bytes(64),
        "position_vec": rng.integers(-127, 128, 1024).astype(np.int8),
        "position_scale": 0.5,
        "anchored_vec": rng.integers(-127, 128, 1024).astype(np.int8),
        "anchored_scale": 0.25,
        "flags": 7,
        "tensor_hashes": b"HLF0" + rng.bytes(100),
        "tensor_codes": b"HLF3",
        "profile": b"HLF4",
        "coverage": 1.0,
        "nonfinite": 0,
        "seconds": 0.1,
        "run_id": RUN,
        **changes,
    }


def reel(number, **changes):
    return {
        "entry_key": digest("entry", number),
        "name": f"model-{number}",
        "content_key": digest("content", number),
        "reel_sha256": digest("reel", number),
        "uri": f"reels/{number}.mkv",
        "mode": "archive",
        "format_version": 1,
        "codec": "ffv1",
        "layout": "raster",
        "frames": 3,
        "bytes": 100,
        "values": 50,
        "bits_per_value": 16.0,
        "manifest_sha256": digest("manifest", number),
        "lossless": True,
        "run_id": RUN,
        **changes,
    }


def model(number, **changes):
    return {
        "ref_key": digest("ref", number),
        "content_key": digest("content", number),
        "name": f"model-{number}",
        "uri": f"file:///models/{number}",
        "format": "safetensors",
        "kind": "checkpoint",
        "files": [{"path": "model.safetensors", "size": 100, "sha256": digest("file", number)}],
        "parameters": 50,
        "bytes": 100,
        "role_counts": [{"role": "attention", "tensors": 1, "parameters": 50}],
        "notes": [],
        "run_id": RUN,
        **changes,
    }


def encoded(*numbers):
    """One commit's worth: fingerprint, reel and model of every number."""
    return {
        "fingerprints": [fingerprint(n) for n in numbers],
        "reels": [reel(n) for n in numbers],
        "models": [model(n) for n in numbers],
    }
