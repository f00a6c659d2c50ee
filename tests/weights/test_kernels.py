import subprocess
import sys


def test_opening_checkpoints_imports_neither_the_compiler_nor_network_or_table_libraries():
    code = "import sys, hilm.weights; print('|'.join(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in ran.stdout.strip().split("|")}
    assert not {"numba", "huggingface_hub", "pyarrow", "lancedb", "gguf", "torch"} & roots
