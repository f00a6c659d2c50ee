"""What would go wrong silently is found before the first step; no weights are loaded.

Every finding has a stable id. Errors stop a run with exit code 2, a missing package with 4.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.data import columns_of, load_data, load_eval
from hilm.errors import InputError, MissingExtra
from hilm.extras import EXTRAS
from hilm.training.methods import Method, find_method

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hilm.training.config import FitConfig

LOOK = 1000
"""Rows looked at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found.

    Attributes:
        id: Stable name.
        severity: ``error``, ``warning``, or ``note`` for what is put right by itself.
        message: What was found.
        hint: What to do.
        exit_code: Of an error.
        forcible: Whether --force overrides it.
    """

    id: str
    severity: str
    message: str
    hint: str = ""
    exit_code: int = 2
    forcible: bool = False


@dataclass(slots=True)
class Checked:
    """A run that was looked at.

    Attributes:
        config: With everything decided that was left open.
        findings: All of them.
        plan: Memory: ``row`` of the plan, ``total``, ``available``, all in bytes.
    """

    config: FitConfig
    findings: list[Finding]
    plan: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Situation:
    """What the checks look at: configuration, method, an empty model, its tokenizer, and rows."""

    config: FitConfig
    name: str
    method: Method
    model: Any
    tokenizer: Any
    rows: list[dict[str, Any]]
    held_out: list[dict[str, Any]]

    @property
    def model_type(self) -> str:
        """As ``config.json`` names it."""
        return str(self.model.config.model_type)


def preflight(name: str, config: FitConfig) -> Checked:
    """Look at a run before it starts; loads configuration, tokenizer and rows, but no weights.

    Raises:
        UsageError: There is no such method.
        InputError: There is no model, no tokenizer, or rows that lack a column; the method does not fit the
            architecture (E-TASKTYPE).
    """
    find_method(name)
    found = [*_packages(config), *_launch(name, config), *_settled(config)]
    if any(finding.severity == "error" for finding in found):
        return Checked(config, found)
    situation = look(name, config)
    found += [finding for check in _CHECKS for finding in check(situation)]
    if any(finding.severity == "error" for finding in found):
        return Checked(config, found)
    from hilm.training.budget import check_disk, check_memory  # noqa: PLC0415 - peft is slow to import

    decided, memory, more = check_memory(situation)
    return Checked(decided, [*found, *more, *check_disk(config, memory)], memory)


def check(findings: Iterable[Finding], *, force: bool, tell: Callable[[Finding], None]) -> None:
    """Raise the first error; tell the rest.

    Raises:
        InputError: An error, which ``force`` does not override.
        MissingExtra: A package is missing.
    """
    for finding in findings:
        if finding.severity != "error" or (finding.forcible and force):
            tell(finding)
        else:
            kind = MissingExtra if finding.exit_code == MissingExtra.exit_code else InputError
            raise kind(f"[{finding.id}] {finding.message}", hint=finding.hint)


def error(name: str, message: str, hint: str, **more: Any) -> Finding:  # noqa: ANN401 - fields of Finding
    """A finding that ends the run."""
    return Finding(name, "error", message, hint, **more)


def _packages(config: FitConfig) -> Iterator[Finding]:
    wanted = [("E-TRACK", tracker) for tracker in config.track.to]
    wanted += [("E-BNB", "bitsandbytes")] if config.peft.kind == "qlora" else []
    wanted += [("E-DEEPSPEED", "deepspeed")] if config.launch.deepspeed else []
    for name, package in wanted:
        if not re.fullmatch(r"\w+", package) or find_spec(package) is None:
            extra = EXTRAS.get(package)
            what = f'"hilm[{extra}]"' if extra else package
            yield error(name, f"{package} is not installed", f"pip install {what}", exit_code=4)


def _launch(name: str, config: FitConfig) -> Iterator[Finding]:
    """What the settings alone tell."""
    train, launch, peft = config.train, config.launch, config.peft
    if train.batch_size % launch.nproc:
        yield error(
            "E-WORLD",
            f"a batch of {train.batch_size} cannot be shared by {launch.nproc} processes",
            f"train.batch_size={-(-train.batch_size // launch.nproc) * launch.nproc}",
        )
    if launch.nproc > 1 and os.environ.get("ACCELERATE_USE_CPU") and "WORLD_SIZE" not in os.environ:
        yield error(
            "E-WORLD",
            "accelerate launch --cpu starts one process, whatever it is asked for",
            f"run hilm itself: hilm fit … --nproc {launch.nproc}",
        )
    if config.data.streaming and train.steps is None:
        yield error("E-EMPTY", "a stream of rows has no end", "set train.steps")
    if peft.kind == "prefix" and train.activation_checkpointing is True:
        yield error(
            "E-PREFIX-CKPT",
            "prefix tuning cannot run under activation checkpointing",
            "train.activation_checkpointing=false, or peft.kind=prompt",
        )
    if name == "ppo" and (peft.kind in {"prefix", "prompt"} or train.grad_accum > 1):
        what = f"peft.kind={peft.kind}" if train.grad_accum == 1 else "train.grad_accum above 1"
        yield error(
            "E-PPO", f"ppo does not take {what}", "peft.kind=lora; method.minibatches divides a batch"
        )
    if Path(config.model.path).exists() and config.model.id is None:
        severity = "error" if config.publish.enabled else "warning"
        yield Finding(
            "E-BASE-PATH",
            severity,
            f"the base is the local folder {config.model.path}: the result cannot name it in public",
            "model.id=organisation/name",
        )


def _settled(config: FitConfig) -> Iterator[Finding]:
    """What is put right by itself."""
    train, peft = config.train, config.peft
    if train.precision == "fp32":
        yield Finding("E-BF16-DEFAULT", "note", "precision is float32; TRL's own default would be bfloat16")
    if peft.kind == "qlora":
        yield Finding("E-QHEAD", "note", "the head is not quantised, so that it can be trained")
    if peft.kind == "qlora" and train.precision != "bf16":
        yield Finding("E-QCAST", "note", "trained values stay in float32 over the quantised base")
    if peft.kind == "prefix" and train.activation_checkpointing == "auto":
        yield Finding(
            "E-PREFIX-CKPT", "note", "no activation checkpointing: prefix tuning cannot run under it"
        )


def look(name: str, config: FitConfig) -> Situation:
    """Load what the checks need.

    Raises:
        InputError: As of :func:`preflight`.
    """
    import torch  # noqa: PLC0415 - slow to import
    import transformers  # noqa: PLC0415 - the same

    from hilm.training import modeling  # noqa: PLC0415 - the same
    from hilm.training.rows import find_columns  # noqa: PLC0415 - the same

    known = modeling.read_config(config.model)
    try:
        method = find_method(name, known.to_dict())
        with torch.device("meta"):
            model = getattr(transformers, method.head).from_config(known)
    except ValueError as problem:
        reason = str(problem).splitlines()[0][:100]
        raise InputError(
            f"[E-TASKTYPE] {reason}", hint=getattr(problem, "hint", "choose a method that fits")
        ) from problem
    if config.peft.task_type not in {None, method.task}:
        raise InputError(
            f"[E-TASKTYPE] {config.peft.task_type} is not the task type of {name}: {method.task}",
            hint="leave peft.task_type out",
        )
    rows, held_out = load_data(config.data), load_eval(config.data)
    find_columns(columns_of(rows), name, method)
    return Situation(
        config,
        name,
        method,
        model,
        modeling.load_tokenizer(config.model),
        list(islice(iter(rows), LOOK if config.data.streaming else None)),
        [] if held_out is None else list(islice(iter(held_out), LOOK)),
    )


def _precision(s: Situation) -> Iterator[Finding]:
    from hilm.training.modeling import device  # noqa: PLC0415 - torch

    if s.config.train.precision == "fp16" and device(s.config) == "cpu":
        yield error("E-FP16-CPU", "fp16 changes nothing on a CPU", "train.precision=bf16, or fp32")


def _targets(s: Situation) -> Iterator[Finding]:
    from hilm.training.modeling import find_targets  # noqa: PLC0415 - torch

    targets = find_targets(s.config.peft.targets, s.model_type)
    if s.config.peft.kind not in {"lora", "qlora"} or targets == "all-linear":
        return
    names = [name for name, _ in s.model.named_modules()]
    for pattern in [targets] if isinstance(targets, str) else targets:
        whole = isinstance(targets, str)
        if any(re.fullmatch(pattern, n) if whole else f".{n}".endswith(f".{pattern}") for n in names):
            continue
        leaves = sorted(
            {n.rpartition(".")[2] for n, m in s.model.named_modules() if not list(m.children()) and n}
        )
        near = get_close_matches(pattern, leaves, n=3, cutoff=0.3) or leaves[:6]
        yield error("E-TARGET", f"peft.targets: no module is called {pattern!r}", f"near: {', '.join(near)}")


def _tokens(s: Situation) -> Iterator[Finding]:
    embedded = s.model.get_input_embeddings().weight.shape[0]
    if len(s.tokenizer) > embedded:
        yield error(
            "E-VOCAB",
            f"the tokenizer has {len(s.tokenizer)} tokens, the model embeds {embedded}",
            "take the tokenizer of this model",
        )
    if s.tokenizer.pad_token == s.tokenizer.eos_token:
        yield Finding("E-PAD", "note", f"texts are padded with {s.tokenizer.pad_token}, which also ends them")
    if s.rows and "messages" in s.rows[0] and not s.tokenizer.chat_template:
        yield error(
            "E-CHAT",
            "the rows are messages and the tokenizer has no chat template",
            "tokenizer.chat_template = …",
        )


def _rows(s: Situation) -> Iterator[Finding]:
    if not s.rows:
        yield error("E-EMPTY", "no row is left to train on", "look at data.filter: hilm data preview")
        return
    both = {_key(row) for row in s.rows} & {_key(row) for row in s.held_out}
    if both:
        yield Finding(
            "E-OVERLAP", "warning", f"{len(both)} rows to evaluate on are also trained on", "data.filter"
        )
    texts = [text_of(row) for row in s.rows[:LOOK]]
    limit = s.config.train.max_length
    cut = 0.0
    if not s.method.rewarded and s.name != "pretrain":
        cut = sum(length > limit for length in count_tokens(s.tokenizer, texts)) / len(texts)
    if cut > 0.05:
        message = f"{cut:.1%} of the rows are cut at {limit} tokens"
        yield Finding("E-LENGTH", "warning", message, "raise train.max_length")


def _key(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, default=str)


def text_of(row: dict[str, Any]) -> str:
    """All that a row says, roughly as it is tokenised: the longer of two completions."""
    parts = {key: str(value) for key, value in row.items() if key != "label"}
    pair = [parts.pop(key) for key in ("chosen", "rejected") if key in parts]
    return "".join([*parts.values(), max(pair, key=len, default="")])


def count_tokens(tokenizer: Any, texts: list[str]) -> list[int]:  # noqa: ANN401 - of transformers
    """Tokens of each text."""
    return [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]


def _labels(s: Situation) -> Iterator[Finding]:
    if s.name not in {"classify", "kto"} or not s.rows:
        return
    labels = [row.get("label") for row in s.rows]
    if s.name == "classify":
        wrong = [label for label in labels if not isinstance(label, int) or label < 0]
        if wrong:
            yield error(
                "E-LABELS", f"the label {wrong[0]!r} is no number from 0 on", "data.map renames columns"
            )
            return
        missing = sorted(set(range(max(labels) + 1)) - set(labels))  # type: ignore[type-var, operator]
        if missing and len(set(labels)) > 1:
            yield error("E-LABELS", f"no row has the label {missing[0]}", "number labels 0, 1, 2, …")
    if len(set(labels)) == 1:
        yield error("E-LABELS", f"every row has the label {labels[0]!r}", "there is nothing to learn")
    told = defaultdict(set)
    for row in s.rows:
        told[text_of(row)].add(row.get("label"))
    torn = sum(len(values) > 1 for values in told.values()) / max(1, len(told))
    if torn > 0.01:
        yield Finding(
            "E-LABELS", "warning", f"{torn:.1%} of the texts have several labels", "data.filter: dedupe"
        )


def _groups(s: Situation) -> Iterator[Finding]:
    if s.name not in {"grpo", "rloo"}:
        return
    group = int(s.config.method.get("num_generations", 8 if s.name == "grpo" else 2))
    batch, accumulated, world = s.config.train.batch_size, s.config.train.grad_accum, s.config.launch.nproc
    if batch * accumulated % group:
        valid = [b for b in range(1, 2 * (batch + group)) if b * accumulated % group == 0 and b % world == 0]
        near = sorted(sorted(valid, key=lambda b: abs(b - batch))[:2])
        yield error(
            "E-GEN",
            f"a batch of {batch * accumulated} cannot be cut into groups of {group} generations",
            f"train.batch_size={' or '.join(map(str, near))}",
        )


_CHECKS = (_precision, _targets, _tokens, _rows, _labels, _groups)
