import subprocess
import sys

import numpy as np

from hilm.weights import DTYPES, decode
from hilm.weights.dtypes import PIECE


def test_opening_checkpoints_imports_neither_the_compiler_nor_network_or_table_libraries():
    code = "import sys, hilm.weights; print('|'.join(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in ran.stdout.strip().split("|")}
    assert not {"numba", "huggingface_hub", "pyarrow", "lancedb", "gguf", "torch"} & roots


def test_long_and_short_runs_of_bfloat16_are_widened_alike():
    words = np.arange(1 << 16, dtype=np.uint16).repeat(2)
    long, short = np.empty(len(words), np.float32), np.empty(len(words), np.float32)
    decode(DTYPES["BF16"], words.view(np.uint8), long)
    for start in range(0, len(words), PIECE - 1):
        piece = slice(start, start + PIECE - 1)
        decode(DTYPES["BF16"], words[piece].view(np.uint8), short[piece])
    assert np.array_equal(long.view(np.uint32), short.view(np.uint32))
    assert np.array_equal(long.view(np.uint32), words.astype(np.uint32) << 16)
