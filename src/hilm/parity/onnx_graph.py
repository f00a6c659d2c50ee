"""Stages of an exported graph: torch.onnx notes beside every node which module it came from.

The tensors that leave a block, and each part of it, become outputs. To feed stages the reference's values,
the tensor that enters each of them becomes an input, so that one run gives the local error of all.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.extras import require
from hilm.parity.taps import part_name

if TYPE_CHECKING:
    from collections.abc import Iterable

SCOPES, CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
FED = "hilm.fed."
MAX_NOTE = 1 << 16


@dataclass(frozen=True, slots=True)
class Edge:
    """Where the tokens of a module enter and leave a graph; ``inner`` are the numbers of its nodes."""

    enters: str
    leaves: str
    inner: frozenset[int]


def find_stages(graph: Any) -> dict[str, Edge]:  # noqa: ANN401 - onnx
    """Find blocks and their parts by the notes of the exporter; none without notes."""
    scopes = [_note(node, SCOPES) for node in graph.node]
    classes = [_note(node, CLASSES) for node in graph.node]
    stacks: dict[str, dict[int, str]] = defaultdict(dict)
    for path, kinds in zip(scopes, classes, strict=True):
        for scope, kind in zip(path[:-1], kinds, strict=False):
            if found := re.fullmatch(r"(.+)\.(\d{1,6})", scope):
                stacks[f"{found[1]}.{{}}:{kind}"][int(found[2])] = scope
    if not stacks:
        return {}
    blocks = max(stacks.values(), key=len)
    weights = {
        t.name
        for t in graph.initializer
        if len(t.dims) and np.prod(t.dims) > 1 and t.data_type in {1, 10, 16}
    }
    stages: dict[str, Edge] = {}
    for index, scope in sorted(blocks.items()):
        parts: dict[str, list[int]] = defaultdict(list)
        inner = [n for n, path in enumerate(scopes) if scope in path]
        for n in inner:
            below = scopes[n][scopes[n].index(scope) + 1 : -1]
            if below:
                parts[below[0]].append(n)
        seen = Counter[str]()
        for name, nodes in parts.items():
            if any(i in weights for n in nodes for i in graph.node[n].input):
                kind = classes[nodes[0]][scopes[nodes[0]].index(name)].rpartition(".")[2]
                stage = part_name(index, name.rpartition(".")[2], kind, seen)
                _add_edge(stages, stage, graph, nodes)
        _add_edge(stages, f"layer.{index}", graph, inner)
    return stages


def _note(node: Any, key: str) -> list[str]:  # noqa: ANN401 - onnx
    text = next((p.value for p in node.metadata_props if p.key == key), "")
    try:
        found = ast.literal_eval(text) if text.startswith("[") and len(text) < MAX_NOTE else []
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return [str(part) for part in found]


def _add_edge(stages: dict[str, Edge], stage: str, graph: Any, nodes: Iterable[int]) -> None:  # noqa: ANN401
    """Find the last tensor made outside that goes in, and the last one made inside that comes out."""
    inner = frozenset(nodes)
    made = {name: n for n, node in enumerate(graph.node) for name in node.output}
    made |= {value.name: -1 for value in graph.input}
    width = {v.name: _last_dim(v) for v in (*graph.value_info, *graph.input, *graph.output)}
    used_outside = {name for n, node in enumerate(graph.node) if n not in inner for name in node.input}
    used_outside |= {value.name for value in graph.output}
    outs = [name for n in inner for name in graph.node[n].output if name in used_outside]
    if not outs:
        return
    leaves = max(outs, key=made.__getitem__)
    ins = {name for n in inner for name in graph.node[n].input if name in made and made[name] not in inner}
    alike = [name for name in ins if width.get(name) == width.get(leaves)]
    if alike:
        stages[stage] = Edge(max(alike, key=made.__getitem__), leaves, inner)


def _last_dim(value: Any) -> int | str | None:  # noqa: ANN401 - onnx
    dims = value.type.tensor_type.shape.dim
    return (dims[-1].dim_value or dims[-1].dim_param or None) if len(dims) > 1 else None


def fed_graph(model: Any, stages: dict[str, Edge], *, feed: bool, kind: int) -> bytes:  # noqa: ANN401 - onnx
    """Write a graph that gives every stage's tensors and, to be fed, takes those that enter them.

    Args:
        model: The graph.
        stages: What to open.
        feed: Whether the values that enter stages, and the last block's result, become inputs.
        kind: ONNX number format of these inputs.
    """
    onnx = require("onnx")
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    graph = opened.graph
    known = {value.name for value in graph.output}
    wanted = dict.fromkeys(
        name for e in stages.values() for name in (e.leaves, *(() if feed else (e.enters,)))
    )
    made = {name for node in graph.node for name in node.output}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name in made - known)
    if feed:
        inner_first = sorted(stages, key=lambda stage: "/" not in stage)
        last = last_block(stages)
        in_blocks = frozenset[int]().union(*(edge.inner for edge in stages.values()))
        for number, node in enumerate(graph.node):
            for place, name in enumerate(node.input):
                owner = next(
                    (s for s in inner_first if number in stages[s].inner and stages[s].enters == name), None
                )
                if owner is None and number not in in_blocks and name == stages[last].leaves:
                    owner = "out"
                if owner:
                    node.input[place] = FED + owner
        names = {name for node in graph.node for name in node.input if name.startswith(FED)}
        graph.input.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in sorted(names))
    return bytes(opened.SerializeToString())


def last_block(stages: dict[str, Edge]) -> str:
    """Name the last block."""
    return max((s for s in stages if "/" not in s), key=lambda s: int(s.removeprefix("layer.")))
