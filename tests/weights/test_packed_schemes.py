from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.weights import open_checkpoint
from tests.tiny import write_model
from tests.weights import packing


def write(folder, sample):
    return write_model(folder, sample.tensors, config={"quantization_config": sample.settings})


@pytest.mark.parametrize("scheme", packing.SAMPLES)
def test_values_are_those_of_the_published_formula_to_the_bit(scheme, tmp_path):
    sample = packing.SAMPLES[scheme](np.random.default_rng(1))
    with open_checkpoint(write(tmp_path, sample)) as checkpoint:
        (info,) = checkpoint.tensors.values()
        assert info.name == sample.name
        assert info.shape == sample.values.shape
        np.testing.assert_array_equal(checkpoint.array(sample.name), sample.values)
        blocks = [block.values.copy() for block in checkpoint.blocks()]
        np.testing.assert_array_equal(np.concatenate(blocks), sample.values.ravel())
