"""An ONNX graph, stage by stage where its exporter noted the modules, else by its outputs alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import InputError
from hilm.extras import require
from hilm.parity.audit import Survey, digests
from hilm.parity.onnx_graph import FED, fed_graph, find_stages, last_block
from hilm.parity.runners import token_keys
from hilm.parity.taps import as_rows, fed, loose_rows

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from hilm.parity.inputs import Item
    from hilm.parity.metrics import Keys
    from hilm.parity.onnx_graph import Edge
    from hilm.parity.taps import Injection, Sink

OUTPUTS = {"last_hidden_state": "post", "pooler_output": "head", "logits": "head"}


@dataclass(slots=True)
class OnnxRunner:
    """An ONNX file run by ONNX Runtime on the CPU, in the format it is stored in."""

    path: Path
    label: str
    graph: Any = None
    found: dict[str, Edge] | None = None
    sessions: dict[str, Any] = field(default_factory=dict)

    @property
    def capabilities(self) -> frozenset[str]:
        """Stages can be fed where they can be told apart."""
        return frozenset({"inject"} if self._stages() else ())

    @property
    def dtype(self) -> str:
        """Number format of its largest weight."""
        proto = require("onnx").TensorProto
        largest = max(self._model().graph.initializer, key=lambda t: int(np.prod(t.dims)), default=None)
        kinds = {proto.FLOAT16: "float16", proto.BFLOAT16: "bfloat16"}
        return kinds.get(largest.data_type, "float32") if largest is not None else "float32"

    def open(self, dtype: str, through: str | None = None) -> None:
        """Read the file."""
        del dtype, through
        self._model()

    def close(self) -> None:
        """Free the graph and its sessions."""
        self.graph, self.found, self.sessions = None, None, {}

    def run(self, item: Item, sink: Sink, inject: Injection | None = None, level: str = "block") -> None:
        """Run one input and send every stage that can be told apart."""
        stages = self._stages()
        given = self._arguments(item)
        own = self._call("free", stages, given, feed=False)
        values = given | own
        keys = _keys(item, stages, values)
        if inject is None or keys is None:
            self._send(own, stages, keys, sink)
            return
        opened = {s: e for s, e in stages.items() if level == "sub" or "/" not in s}
        wanted = [(stage, "in", edge.enters) for stage, edge in opened.items()]
        last = last_block(stages)
        wanted.append((last, "out", opened[last].leaves))
        given |= {
            FED + ("out" if side == "out" else stage): fed(inject(stage, side), values[name], keys)
            for stage, side, name in wanted
        }
        self._send(self._call(level, opened, given, feed=True), opened, keys, sink)

    def survey(self) -> Survey:
        """Digest every initialiser; names and forms may be the exporter's."""
        torch, onnx = require("torch"), require("onnx")
        arrays = {t.name: onnx.numpy_helper.to_array(t) for t in self._model().graph.initializer}
        floats = {name: np.array(array) for name, array in arrays.items() if array.dtype.kind == "f"}
        return Survey(
            {name: digests(torch.from_numpy(array)) for name, array in floats.items()}, partial=True
        )

    def _model(self) -> Any:  # noqa: ANN401 - onnx
        if self.graph is None:
            onnx, message = require("onnx"), require("google.protobuf.message")
            try:
                self.graph = onnx.load(self.path)
            except OSError as error:
                raise InputError(f"{self.path}: {error.strerror}", hint="give an ONNX file") from error
            except (ValueError, message.DecodeError, onnx.checker.ValidationError) as error:
                raise InputError(f"{self.path}: no readable ONNX file: {error}") from error
        return self.graph

    def _stages(self) -> dict[str, Edge]:
        if self.found is None:
            self.found = find_stages(self._model().graph)
        return self.found

    def _arguments(self, item: Item) -> dict[str, NDArray[Any]]:
        """Arrays by the names of the graph's inputs; a picture for the only one."""
        model = self._model().graph
        weights = {t.name for t in model.initializer}
        names = [value.name for value in model.input if value.name not in weights]
        given = dict(item.arrays)
        if item.frames is not None and names:
            name = "pixel_values" if "pixel_values" in names else names[0]
            given[name] = np.ascontiguousarray(item.pixels[0].transpose(1, 0, 2, 3))
        lacking = [name for name in names if name not in given]
        if lacking:
            raise InputError(
                f"{item.name}: the graph also takes {', '.join(lacking)}", hint="give an npz input"
            )
        kind = np.float16 if self.dtype == "float16" else np.float32
        return {n: given[n].astype(kind) if given[n].dtype.kind == "f" else given[n] for n in names}

    def _call(
        self, level: str, stages: dict[str, Edge], given: dict[str, NDArray[Any]], *, feed: bool
    ) -> dict[str, NDArray[Any]]:
        runtime = require("onnxruntime")
        names = ("Fail", "InvalidArgument", "InvalidGraph", "RuntimeException", "NotImplemented")
        errors = tuple(getattr(runtime.capi.onnxruntime_pybind11_state, name) for name in names)
        try:
            if level not in self.sessions:
                kind = 10 if self.dtype == "float16" else 1
                data = fed_graph(self._model(), stages, feed=feed, kind=kind)
                self.sessions[level] = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
            session = self.sessions[level]
            known = {value.name for value in session.get_inputs()}
            values = session.run(None, {name: array for name, array in given.items() if name in known})
        except errors as error:
            raise InputError(f"{self.path}: ONNX Runtime: {error}", hint="check shapes and types") from error
        return dict(zip((value.name for value in session.get_outputs()), values, strict=True))

    def _send(
        self, values: dict[str, NDArray[Any]], stages: dict[str, Edge], keys: Keys | None, sink: Sink
    ) -> None:
        """Send the first block's input, every stage, and the graph's own outputs."""
        table = [(stage, edge.leaves, edge.enters) for stage, edge in stages.items()]
        if "layer.0" in stages:
            table.insert(0, ("embed", stages["layer.0"].enters, ""))
        for stage, name, enters in table:
            rows = as_rows(values[name], keys) if name in values and keys is not None else None
            if rows is not None and keys is not None:
                sink(stage, rows, keys, as_rows(values[enters], keys) if enters in values else None)
        for stage, value in self._finals(values):
            rows = as_rows(value, keys) if keys is not None else None
            sink(stage, *((rows, keys) if rows is not None and keys is not None else loose_rows(value)), None)

    def _finals(self, values: dict[str, NDArray[Any]]) -> list[tuple[str, NDArray[Any]]]:
        """Name the outputs: by name, else the first of several is the last hidden state."""
        names = [value.name for value in self._model().graph.output]
        if any(name in OUTPUTS for name in names):
            return [(OUTPUTS[name], values[name]) for name in names if name in OUTPUTS]
        if len(names) == 1:
            value = values[names[0]]
            return [(stage, value) for stage in (("post", "head") if value.ndim > 2 else ("head",))]
        return [(stage, values[name]) for stage, name in zip(("post", "head"), names, strict=False)]


def _keys(item: Item, stages: dict[str, Edge], values: dict[str, NDArray[Any]]) -> Keys | None:
    tokens = [value for value in values.values() if value.ndim == 3]
    first = values[stages["layer.0"].enters] if "layer.0" in stages else next(iter(tokens), None)
    return None if first is None else token_keys(item, values.get("attention_mask"), first.shape)
