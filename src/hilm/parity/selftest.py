"""Plant known faults in a copy of a model and see which of them the gates catch.

A gate that never saw a defect proves nothing. The built-in witness has trained-like weights: on random
weights of std 0.02 a model hardly uses its own layers, and even large faults disappear in rounding.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import UsageError
from hilm.extras import require
from hilm.parity.audit import audit
from hilm.parity.encoders import prepare_packed, prepare_padded
from hilm.parity.engine import compare_inputs, judge_candidate, record_baseline
from hilm.parity.faults import DOWN, FAULTS, KEY, OUT, PLACES, QUERY, linears, misplaced
from hilm.parity.features import match_feature
from hilm.parity.inputs import Item, grid_keys, virtual_slots
from hilm.parity.metrics import align
from hilm.parity.runners import TorchRunner, module_runner
from hilm.parity.taps import find_blocks
from hilm.parity.verdict import Gates, Stage, first_divergence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    from hilm.parity.engine import Baseline

WEAK = "random weights of std 0.02: too weak a witness, the self-test has no power on it"
UNTRAINED_STD = (0.018, 0.022)
"""Where the standard deviations of all matrices lie if nobody trained them."""


@dataclass(frozen=True, slots=True)
class Catch:
    """What became of one fault."""

    fault: str
    expected: str
    precision: str
    caught: bool
    by: str
    ratio: float | None


@dataclass(frozen=True, slots=True)
class SelfTestReport:
    """The power of the gates on one model; ``ok`` if all required faults were caught and nothing else."""

    model: str
    catches: tuple[Catch, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every fault was caught where it was planted, and no clean variant was flagged."""
        return bool(self.catches) and all(catch.caught for catch in self.catches)

    def document(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "schema": 1,
            "model": self.model,
            "verdict": "pass" if self.ok else "fail",
            "caught": sum(catch.caught for catch in self.catches),
            "planted": len(self.catches),
            "faults": [asdict(catch) for catch in self.catches],
            "warnings": list(self.warnings),
        }


def selftest(
    runner: TorchRunner | None = None,
    items: Sequence[Item] | None = None,
    *,
    gates: Gates | None = None,
    precisions: Sequence[str] = ("float32", "bfloat16"),
) -> SelfTestReport:
    """Plant every fault in the first, a middle and the last block and compare with the model itself.

    Args:
        runner: The model; a built-in one with trained-like weights when None.
        items: Inputs; a generated one when None.
        gates: What is put to the test.
        precisions: Number formats to test in.
    """
    runner, gates = runner or witness(), gates or Gates()
    model = runner.load()
    items = list(items) if items is not None else generated_items(model)
    count = len(find_blocks(model, runner.blocks)[1])
    layers = sorted({0, (count - 1) // 2, count - 1})
    catches: list[Catch] = []
    warnings = [WEAK] if looks_untrained(model) else []
    for precision in precisions:
        with TemporaryDirectory(prefix="hilm-parity-") as folder:
            baseline = record_baseline(runner, items, precision, ["block", "sub"], Path(folder))
            catches += _clean(runner, items, baseline, gates)
            for fault in (fault for fault in FAULTS if precision in fault.precisions):
                for layer in layers:
                    faulty = runner.load()
                    if not fault.plant(find_blocks(faulty, runner.blocks)[1][layer]):
                        warnings.append(f"{fault.name}: nothing to plant it in")
                        break
                    stages = _stages(runner, faulty, items, baseline, gates)
                    expected = f"layer.{layer} / {fault.part}"
                    catches.append(_caught(fault.name, expected, baseline, stages, gates))
            catches += _misplaced(runner, items, baseline, gates)
    catches += [*_audit_faults(runner), *_input_faults(items), *_feature_faults()]
    return SelfTestReport(runner.label, tuple(catches), tuple(dict.fromkeys(warnings)))


def _stages(
    runner: TorchRunner, other: nn.Module, items: Sequence[Item], baseline: Baseline, gates: Gates
) -> list[Stage]:
    candidate = replace(runner, load=lambda: other, label="planted", model=None)
    return judge_candidate(candidate, items, baseline, gates)


def _is_pair(model: nn.Module) -> bool:
    return str(getattr(getattr(model, "config", None), "model_type", "")).startswith("hilm_onevision")


def _misplaced(runner: TorchRunner, items: Sequence[Item], baseline: Baseline, gates: Gates) -> list[Catch]:
    """Faults of an encoder's positions."""
    model, catches = runner.load(), []
    for name, change in PLACES.items() if _is_pair(model) else ():
        clip = any(len(item.slots) > 1 for item in items)
        if clip or "slot" not in name:
            other = replace(runner, prepare=partial(misplaced, runner.prepare, change))
            stages = _stages(other, model, items, baseline, gates)
            catches.append(_caught(name, "layer.0 / attn", baseline, stages, gates))
    return catches


def _clean(runner: TorchRunner, items: Sequence[Item], baseline: Baseline, gates: Gates) -> list[Catch]:
    """The same model, with attention computed the plain way, and packed: none may be flagged."""
    model = runner.load()
    variants = {"none: the same model": (runner, model)}
    if hasattr(model, "set_attn_implementation"):
        eager = runner.load()
        eager.set_attn_implementation("eager")
        variants["none: eager attention"] = (runner, eager)
    if _is_pair(model) and not model.config.packed:
        packed = require("hilm.models.onevision").as_packed(model)
        variants["none: packed"] = (replace(runner, prepare=prepare_packed), packed)
    catches = []
    for name, (variant, model) in variants.items():
        stages = _stages(variant, model, items, baseline, gates)
        ratio = max(stage.ratio or 0.0 for stage in stages)
        by = next((stage.stage for stage in stages if stage.status == "fail"), "nothing")
        catches.append(Catch(name, "nothing", baseline.low, by == "nothing", by, ratio))
    return catches


def _caught(fault: str, expected: str, baseline: Baseline, stages: list[Stage], gates: Gates) -> Catch:
    """A fault counts as caught if its layer and part are named first and no layer without it fails."""
    found = first_divergence(stages, gates)
    named = "nothing" if found is None else f"{found['stage']} / {found['sub']}"
    failing = {stage.stage.partition("/")[0] for stage in stages if stage.status == "fail"}
    caught = named == expected and (fault in PLACES or failing == {expected.partition(" ")[0]})
    return Catch(fault, expected, baseline.low, caught, named, None if found is None else found["ratio"])


def _audit_faults(runner: TorchRunner) -> list[Catch]:
    """Weights and buffers that are wrong before anything runs."""
    torch = require("torch")
    other, broken = runner.load(), runner.load()
    next(p for p in other.parameters() if p.ndim > 1).data.add_(0.5)
    broken.register_buffer("hilm_selftest", torch.tensor([1.3e-43, 7e22]))
    catches = []
    for name, model in (("weights of another checkpoint", other), ("buffer not restored", broken)):
        found = audit(runner, replace(runner, load=lambda model=model: model, label="planted"))  # type: ignore[misc]
        by = found.faults[0] if found and found.faults else ""
        catches.append(_seen(name, "audit", by))
    return catches


def _seen(fault: str, expected: str, by: str) -> Catch:
    return Catch(fault, expected, "", bool(by), by or "nothing", None)


def _input_faults(items: Sequence[Item]) -> list[Catch]:
    """A picture that is read wrongly on one side."""
    catches = []
    for item in [item for item in items if item.frames is not None][:1]:
        frames = np.asarray(item.frames)
        turned = "preprocess" if frames.shape[1] != frames.shape[2] else "pixels"
        late = item.facts | {"frame_indices": [n + 1 for n in range(len(frames))]}
        for name, stage, other in (
            ("BGR for RGB", "pixels", replace(item, frames=frames[..., ::-1])),
            ("orientation ignored", turned, replace(item, frames=np.rot90(frames, axes=(1, 2)))),
            ("every frame one late", "decode", replace(item, facts=late)),
        ):
            failing = [s.stage for s in compare_inputs(item, other) if s.status == "fail"]
            by = failing[0] if failing else "nothing"
            catches.append(Catch(name, stage, "", by == stage, by, None))
    return catches


def _feature_faults() -> list[Catch]:
    """Features that a comparison of cosines alone lets pass."""
    good = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    holed, blank, keys = good.copy(), good.copy(), grid_keys(1, 8, 8)
    holed[3], blank[5] = np.nan, 0
    planted = {
        "half of the tokens dropped": good[:32],
        "features x 7": 7 * good,
        "a row of NaN": holed,
        "a row of zeros": blank,
        "column-major tokens": good.reshape(8, 8, 32).swapaxes(0, 1).reshape(64, 32),
    }
    tables = {"one key missing": keys[1:], "one key twice": np.concatenate([keys, keys[:1]])}
    return [
        *(_seen(name, "features", match_feature("", good, rows).reason) for name, rows in planted.items()),
        *(_seen(name, "alignment", align(keys, table)[2]) for name, table in tables.items()),
    ]


def looks_untrained(model: nn.Module) -> bool:
    """Say whether all matrices of the blocks have the standard deviation of a fresh initialisation."""
    low, high = UNTRAINED_STD
    matrices = [p for block in find_blocks(model)[1] for p in block.parameters() if p.ndim > 1]
    return bool(matrices) and all(low < float(p.detach().float().std()) < high for p in matrices)


def generated_items(model: nn.Module) -> list[Item]:
    """Make a picture, also a clip for an encoder of the pair, or tokens, that suit a model's config.

    Raises:
        UsageError: Its config tells neither patches nor a vocabulary.
    """
    random, config = np.random.default_rng(0), getattr(model, "config", None)
    patch, size = getattr(config, "patch_size", None), getattr(config, "image_size", None)
    if isinstance(patch, int):
        sides = (9 * patch, 11 * patch)
        if not _is_pair(model) and size is not None:
            sides = (size, size) if isinstance(size, int) else tuple(size)
        picture = Item("generated", "image", "generated", _coarse(random, 1, *sides), patch)
        clip = _coarse(random, 3, 3 * patch, 4 * patch)
        clips = [Item("clip", "video", "generated", clip, patch, virtual_slots(3, 64))]
        return [picture, *(clips if _is_pair(model) else [])]
    if isinstance(vocabulary := getattr(config, "vocab_size", None), int):
        tokens = random.integers(0, vocabulary, (1, 48))
        return [Item("generated", "arrays", "generated", arrays={"input_ids": tokens})]
    raise UsageError("cannot make an input for this model", hint="give one: --input name=path")


def _coarse(random: np.random.Generator, frames: int, height: int, width: int) -> NDArray[np.uint8]:
    squares = random.integers(0, 256, (frames, math.ceil(height / 4), math.ceil(width / 4), 3), np.uint8)
    return squares.repeat(4, 1).repeat(4, 2)[:, :height, :width]


def witness(*, layers: int = 12, width: int = 256, trained: bool = True, seed: int = 0) -> TorchRunner:
    """The padded encoder with trained-like weights, or with those of a fresh initialisation."""
    torch, onevision = require("torch"), require("hilm.models.onevision")
    config = onevision.OneVisionConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = onevision.OneVisionModel(config).eval()
        if trained:
            train_like(model)
    return module_runner(model, prepare=prepare_padded, label="built-in witness")


def train_like(model: nn.Module) -> None:
    """Give a model the statistics of trained weights: strong attention, and two outlier channels."""
    torch = require("torch")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and name.endswith("weight"):
                value.normal_(0, 1 / math.sqrt(value[0].numel()))
            elif name.endswith("bias"):
                value.zero_()
        blocks = find_blocks(model)[1]
        for block in blocks:
            for layer in linears(block, *QUERY, *KEY):
                layer.weight.mul_(2)
            for layer in linears(block, *OUT, *DOWN):
                layer.weight.mul_(1.5)
            for layer in linears(block, *DOWN)[-1:]:
                layer.bias.normal_(0, 0.05)
        for layer in linears(blocks[min(1, len(blocks) - 1)], *DOWN)[-1:]:
            layer.bias[7], layer.bias[101 % len(layer.bias)] = 60, -40
