from __future__ import annotations

import re
import subprocess
import sys

import pytest

import hilm


@pytest.mark.parametrize("name", hilm.__all__)
def test_every_public_name_is_there(name):
    assert getattr(hilm, name).__module__.startswith("hilm.")
    assert name in dir(hilm)


def test_there_is_nothing_else():
    with pytest.raises(AttributeError, match="hilm"):
        _ = hilm.nothing


def test_importing_costs_nothing():
    code = "import sys, hilm; print({m.split('.')[0] for m in sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"'(\w+)'", ran.stdout))
    assert "hilm" in loaded
    assert not loaded & {"numpy", "numba", "av", "lancedb", "torch", "click"}
