"""ResNet-BK on a GPU: throughput and memory against GPT-2, printed with the device's name.

Not part of ``run.py``: it needs a GPU, and no result is stored, because none was at hand.

Run: python benchmarks/gpu_resnet_bk.py
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import TYPE_CHECKING

import torch
from resnet_bk import gpt2, resnet_bk, tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTHS = (512, 2048, 8192, 16_384)


def trained(model: PreTrainedModel, length: int, runs: int = 10) -> tuple[float, float]:
    """Return tokens per second of forward and backward over one row, and the peak in MiB."""
    ids, times = tokens(length).cuda(), []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(runs + 2):
        model.zero_grad()
        torch.cuda.synchronize()
        started = time.perf_counter()
        model(ids, labels=ids, use_cache=False).loss.backward()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return length / statistics.median(times[2:]), torch.cuda.max_memory_allocated() / 2**20


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("no GPU: nothing is measured")
    print(torch.cuda.get_device_name())
    for make in (resnet_bk, gpt2):
        model = make().train().cuda()
        for length in LENGTHS:
            speed, memory = trained(model, length)
            print(f"{make.__name__:10} {length:6,} tokens: {speed:10,.0f} tokens/s, {memory:8,.0f} MiB")


if __name__ == "__main__":
    main()
