from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from hilm.errors import InputError
from hilm.parity.features import verify_features

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.standard_normal((1, 12, 8)).astype(np.float32)
DOCUMENTED = """================================================================================
Feature Verification Tool
================================================================================

Loading features from: {folder}

=== Metadata ===
HF Model:      /padded
Packing Model: /packed
Device:        cuda
Num Frames:    8

=== Inputs ===
image1: 1.jpg
  Resolution: 1920x1080
video1: 1.mp4
  Frames: 8/240

================================================================================
Feature Comparison
================================================================================

--- image1 ---
HF shape:      (1, 12, 8)
Packing shape: (12, 8)
Max Diff:        0.000000
Mean Diff:       0.000000
Min Cosine Sim:  1.00000000
Mean Cosine Sim: 1.00000000
Max Cosine Sim:  1.00000000
✅ image1: PASS (min cosine > 0.99)

--- video1 ---
HF shape:      (1, 12, 8)
Packing shape: (12, 8)
Max Diff:        0.000000
Mean Diff:       0.000000
Min Cosine Sim:  1.00000000
Mean Cosine Sim: 1.00000000
Max Cosine Sim:  1.00000000
✅ video1: PASS (min cosine > 0.99)

================================================================================
Summary
================================================================================
Total comparisons: 2
Passed:            2
Failed:            0

✅ All features match! Models are consistent."""


def write(folder, packing=None, hf=None, names=("image1", "video1"), **more):
    """Features as the tool before this one wrote them: nothing but the documented keys."""
    hf = dict.fromkeys(names, TOKENS) if hf is None else hf
    packing = dict.fromkeys(names, TOKENS[0]) if packing is None else packing
    np.savez(folder / "features_hf.npz", **hf)
    np.savez(folder / "features_packing.npz", **packing)
    facts = {
        "image1": {"path": "1.jpg", "width": 1920, "height": 1080, "shape": [1, 3, 1080, 1920]},
        "video1": {"path": "1.mp4", "sampled_frames": 8, "total_frames": 240},
    }
    document = {
        "hf_model_path": "/padded",
        "packing_model_path": "/packed",
        "num_frames": 8,
        "device": "cuda",
        "inputs": {name: facts[name] for name in names},
        **more,
    }
    (folder / "metadata.json").write_text(json.dumps(document))
    return folder


def test_the_report_is_the_documented_one(tmp_path):
    report = verify_features(write(tmp_path))
    assert report.ok
    assert report.text() == DOCUMENTED.replace("{folder}", str(tmp_path))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[:6], "6 tokens for 12"),
        (lambda rows: 7 * rows, "norm ratio 7 is not within 0.1 of 1"),
        (lambda rows: np.where(np.arange(12)[:, None] == 4, np.nan, rows), "8 NaN or infinite values"),
        (lambda rows: rows * (np.arange(12)[:, None] != 4), "min cosine <= 0.99"),
        (lambda rows: rows[::-1], "min cosine <= 0.99"),
        (lambda rows: rows[:, :4], "width 4 for 8"),
        (lambda rows: rows.astype(int), "no table of tokens"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, reason):
    packing = {"image1": TOKENS[0], "video1": change(TOKENS[0])}
    report = verify_features(write(tmp_path, packing))
    assert not report.ok
    assert [bool(match.reason) for match in report.matches] == [False, True]
    assert reason in report.matches[1].reason
    assert f"❌ video1: FAIL ({report.matches[1].reason})" in report.text()
    assert report.text().endswith("❌ 1 of 2 features do not match.")


def test_missing_and_extra_names_fail(tmp_path):
    report = verify_features(write(tmp_path, {"image1": TOKENS[0], "stranger": TOKENS[0]}))
    reasons = {match.name: match.reason for match in report.matches}
    assert reasons == {
        "image1": "",
        "video1": "missing in the packing features",
        "stranger": "missing in the HF features",
    }
    both = {"image1": TOKENS[0], "unknown": TOKENS[0]}
    report = verify_features(write(tmp_path, both, both, names=("image1",)))
    assert report.matches[1].reason == "not in metadata.json"


def test_nothing_to_compare_fails(tmp_path):
    report = verify_features(write(tmp_path, names=()))
    assert not report.ok
    assert "Total comparisons: 0" in report.text()


def test_a_changed_file_fails_where_its_digest_is_known(tmp_path):
    report = verify_features(write(tmp_path, files={"features_hf.npz": "0" * 64}))
    assert {match.reason for match in report.matches} == {"features_hf.npz differs from what was written"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"inputs": []}', '{"inputs": {"a": 1}}', "[" * 10_000])
def test_unreadable_metadata(tmp_path, text):
    write(tmp_path)
    (tmp_path / "metadata.json").write_text(text)
    with pytest.raises(InputError, match=r"metadata\.json"):
        verify_features(tmp_path)


@pytest.mark.parametrize("name", ["features_hf.npz", "features_packing.npz", "metadata.json"])
def test_absent_files(tmp_path, name):
    (write(tmp_path) / name).unlink()
    with pytest.raises(InputError, match=name):
        verify_features(tmp_path)


def test_pickled_features_are_not_loaded(tmp_path):
    write(tmp_path)
    np.savez(tmp_path / "features_hf.npz", image1=np.array([{}], object))
    with pytest.raises(InputError, match="plain arrays"):
        verify_features(tmp_path)


def test_the_floor_tells_rounding_from_a_defect(tmp_path):
    noisy = TOKENS[0] * np.float32(1.001)
    write(tmp_path, {"image1": noisy, "video1": noisy}, floor={"image1": {"rel_l2": 0.001}})
    details = verify_features(tmp_path).details()
    assert details[0].endswith("at precision floor: yes")
    assert details[1] == "video1: floor not measured"


def test_verifying_needs_numpy_alone(tmp_path):
    words = ["features", "verify", "--features_dir", str(write(tmp_path))]
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'av', 'PIL', 'onnxruntime'): sys.modules[name] = None\n"
        f"from hilm.cli.main import main; sys.exit(main({words!r}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
