"""Parts of one model that may come from different ones: a vision tower beside a language model.

Each is searched for as if it were a model, by what the whole model's fingerprint keeps of its tensors. The
codes of its matrices give back the directions of their sketches at a cosine of √(2/π) ≈ 0.80: similarities of
a component are smaller by that factor than those of the same weights alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from hilm.lineage import records
from hilm.lineage.search import HAS_SKETCH, Print
from hilm.lineage.sketch import RUNS, code, directions, energy, fixed, quantise

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

LEAST_MATRICES = 8
LEAST_SHARE = 0.05  # of the values of all matrices


def components(model: Print) -> dict[str, Print]:
    """The stacks of numbered blocks that a model consists of, by their common name; empty if it has but one.

    Every other tensor belongs to the stack with the longest path in common.
    """
    codes = model.codes_record
    sizes: Counter[str] = Counter()
    for name, row in zip(codes.names, codes.rows, strict=True):
        sizes[name] += int(row["rows"]) * int(row["columns"])
    stacks = _stacks(codes.names, sizes)
    return {stack: _part(model, stack, stacks) for stack in stacks} if len(stacks) > 1 else {}


def _stacks(names: Sequence[str], sizes: dict[str, int]) -> list[str]:
    """Paths followed by numbers, at least two of them, that hold enough."""
    numbers: dict[str, set[str]] = defaultdict(set)
    matrices: Counter[str] = Counter()
    for name in names:
        path = name.split(".")
        before = list(takewhile(lambda part: not part.isdecimal(), path))
        if 0 < len(before) < len(path):
            stack = ".".join(before)
            numbers[stack].add(path[len(before)])
            matrices[stack] += 1
    values = {s: sum(size for name, size in sizes.items() if name.startswith(f"{s}.")) for s in numbers}
    enough = LEAST_SHARE * sum(sizes.values())
    return sorted(
        s for s in numbers if len(numbers[s]) > 1 and matrices[s] >= LEAST_MATRICES and values[s] >= enough
    )


def _owner(name: str, stacks: Iterable[str]) -> str:
    """The stack that a tensor belongs to."""
    return max(stacks, key=lambda s: [a == b for a, b in zip(name.split("."), s.split("."), strict=False)])


def _part(model: Print, stack: str, stacks: Sequence[str]) -> Print:
    """One component as a model of its own, without token geometry."""
    codes = _within(model.codes_record, stack, stacks)
    position = fixed(directions(codes.rows["position"]).sum(axis=0) / RUNS)
    form = quantise(position)
    head = np.zeros((), records.CODES_HEAD)
    head["position"] = position / 2.0**32
    hashes = _within(model.hashes_record, stack, stacks)
    profile = _within(model.profile_record, stack, stacks)
    row = model.row | {
        "code": np.concatenate([code(form), np.zeros(4, np.uint64)]).astype("<u8").tobytes(),
        "position_vec": form,
        "position_scale": float(np.sqrt(energy(form))),
        "anchored_vec": np.zeros(RUNS, np.int8),
        "flags": HAS_SKETCH,
        "tensor_hashes": records.pack(b"HLF0", bytes(32), hashes.rows, hashes.names),
        "tensor_codes": records.pack(b"HLF3", head.tobytes(), codes.rows, codes.names),
        "profile": records.pack(b"HLF4", b"", profile.rows, profile.names),
    }
    return Print(f"{model.name}: {stack}", row)


def _within(record: records.Record, stack: str, stacks: Sequence[str]) -> records.Record:
    """The rows of a record that belong to a stack."""
    chosen = [i for i, name in enumerate(record.names) if _owner(name, stacks) == stack]
    rows: NDArray[np.void] = record.rows[chosen]
    return records.Record(b"", rows, tuple(record.names[i] for i in chosen))
