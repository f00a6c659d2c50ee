from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.fuzzer import HOSTILE

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("form", HOSTILE)
def test_no_changed_file_crashes_hangs_or_fills_memory(form):
    """In a process of its own, which may take 256 MiB more than it has."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.hostile.fuzzer", "12", form],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    assert "'read'" in ran.stdout
