"""What a run of ``hilm fit`` is asked to do, read from YAML, JSON or TOML; no torch is needed to check it."""

from __future__ import annotations

import json
import tomllib
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from hilm.data import DataConfig  # noqa: TC001 - read as a type when a run's keys are checked
from hilm.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike

    Section = TypeVar("Section")

LONGEST = 1 << 20
"""Bytes of a configuration."""

COUNTS = (
    *("train.steps", "train.batch_size", "train.grad_accum", "train.max_length", "train.save_every"),
    *("train.eval_every", "train.log_every", "peft.r", "peft.virtual_tokens", "launch.nproc"),
)
"""Keys that take 1 or more."""

PROMPT_RATE = 0.3
"""Learning rate of prefix and prompt tuning; at the 1e-2 usual elsewhere they hardly move the loss."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The model to start from; ``id`` is what to call it in public where ``path`` is a local folder."""

    path: str
    revision: str | None = None
    id: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False

    @property
    def address(self) -> str:
        """Where its files are: the path, with a revision as an ``hf://`` address."""
        return self.path if self.revision is None else f"hf://{self.path}@{self.revision}"


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What is trained: everything, or a small addition."""

    kind: Literal["full", "lora", "qlora", "prefix", "prompt"] = "full"
    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "auto"
    task_type: str | None = None
    bits: Literal[4, 8] = 4
    virtual_tokens: int = 20
    init_text: str | None = None


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How it is trained.

    Attributes:
        steps: Updates; ``epochs`` decides when None.
        batch_size: Rows of a forward pass, of all processes together.
        learning_rate: 2e-5 when None; 2e-4 for LoRA, 0.3 for prefix and prompt.
        warmup: Steps, or a share of all below 1.
        activation_checkpointing: ``auto`` switches it on where activations do not fit otherwise.
    """

    steps: int | None = None
    epochs: float = 1
    batch_size: int = 8
    grad_accum: int = 1
    learning_rate: float | None = None
    warmup: float = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    max_length: int = 1024
    packing: bool = False
    activation_checkpointing: bool | Literal["auto"] = "auto"
    save_every: int = 500
    eval_every: int | None = None
    log_every: int = 10
    seed: int = 42


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """What grpo, rloo and ppo maximise: a sequence classifier, a function of yours, or a built-in rule."""

    kind: Literal["model", "function", "length", "regex", "keyword"] = "model"
    model: str | None = None
    function: str | None = None
    pattern: str | None = None
    length: int = 100


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """Where it runs; ``fsdp``, ``fsdp_config`` and ``deepspeed`` are handed to the Trainer as they are."""

    nproc: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    fsdp: str | None = None
    fsdp_config: dict[str, Any] | None = None
    deepspeed: str | None = None


@dataclass(frozen=True, slots=True)
class TrackConfig:
    """Trackers that follow the run: trackio, tensorboard, wandb, as installed."""

    to: tuple[str, ...] = ()
    project: str = "hilm"


@dataclass(frozen=True, slots=True)
class PublishConfig:
    """What the model card says, and where the result goes if ``enabled``."""

    enabled: bool = False
    repo: str | None = None
    private: bool = True
    license: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FitConfig:
    """All of it; ``method`` goes to the method's own Config class, ``out`` is the folder of the run."""

    model: ModelConfig
    data: DataConfig
    out: str
    peft: PeftConfig = field(default_factory=PeftConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    method: dict[str, Any] = field(default_factory=dict)
    reward: RewardConfig = field(default_factory=RewardConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)

    @property
    def learning_rate(self) -> float:
        """The rate asked for, or the usual one of what is trained."""
        usual = {"full": 2e-5, "lora": 2e-4, "qlora": 2e-4}.get(self.peft.kind, PROMPT_RATE)
        return usual if self.train.learning_rate is None else self.train.learning_rate


def load_config(path: str | PathLike[str], overrides: Sequence[str] = ()) -> FitConfig:
    """Read a configuration: YAML, or by its suffix JSON or TOML.

    Args:
        path: The file.
        overrides: ``dotted.key=value``, the value in YAML.

    Raises:
        UsageError: An unknown key, or a value of another kind than the key takes.
        InputError: The file cannot be parsed.
    """
    document = _parse(Path(path))
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"{override!r} is no override", hint="write key=value, as train.steps=100")
        _set(document, dotted.split("."), yaml.safe_load(text))
    return from_document(document)


def from_document(document: dict[str, Any]) -> FitConfig:
    """Check a configuration given as plain data.

    Raises:
        UsageError: As of :func:`load_config`.
    """
    config = _build(FitConfig, document, "")
    if config.publish.enabled and not config.publish.repo:
        raise UsageError("publishing is enabled and there is no publish.repo", hint="publish.repo=owner/name")
    for name in COUNTS:
        section, _, key = name.partition(".")
        value = getattr(getattr(config, section), key)
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}", hint="give 1 or more")
    return config


def to_document(config: FitConfig) -> dict[str, Any]:
    """The configuration as plain data that YAML and JSON can hold, defaults spelled out."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return document


def _parse(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LONGEST:
            raise InputError(f"{path} is too long for a configuration")
        text = path.read_text("utf-8")
        match path.suffix:
            case ".json":
                document = json.loads(text)
            case ".toml":
                document = tomllib.loads(text)
            case _:
                document = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", hint="give a YAML, JSON or TOML file") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be parsed: {reason}", hint="check its syntax") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no keys", hint="docs/fit.md has an example")
    return document


def _set(document: dict[str, Any], keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        document = document.setdefault(key, {})
        if not isinstance(document, dict):
            raise UsageError(f"{'.'.join(keys)}: {key} holds no keys")
    document[keys[-1]] = value


def _build(kind: type[Section], document: object, place: str) -> Section:
    """Make a section of a mapping."""
    if not isinstance(document, dict):
        raise UsageError(f"{place.rstrip('.')} is {document!r}", hint="it holds keys of its own")
    hints = get_type_hints(kind)
    for key in document:
        if key not in hints:
            raise unknown_key(str(key), hints, place)
    values = {key: _convert(value, hints[key], f"{place}{key}") for key, value in document.items()}
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    if missing := [name for name in needed if name not in values]:
        raise UsageError(f"there is no {place}{missing[0]}", hint="docs/fit.md has an example")
    return kind(**values)


def unknown_key(key: str, known: Iterable[str], place: str) -> UsageError:
    """An error that names the nearest known key."""
    close = get_close_matches(key, known := list(known), n=1, cutoff=0.5)
    hint = f"did you mean {place}{close[0]}?" if close else f"known here: {', '.join(known)}"
    return UsageError(f"there is no key {place}{key}", hint=hint)


def _convert(value: object, kind: Any, place: str) -> Any:  # noqa: ANN401 - types and values of any kind
    """Check a value against a type, and give it that type."""
    options = get_args(kind) if get_origin(kind) in {Union, UnionType} else (kind,)
    for option in options:
        if is_dataclass(option):
            return _build(cast("type[Any]", option), value, f"{place}.")
        accepted, converted = _fit(value, option)
        if accepted:
            return converted
    named = " or ".join(_name(option) for option in options)
    raise UsageError(f"{place} is {value!r}", hint=f"it takes {named}")


def _fit(value: object, kind: Any) -> tuple[bool, object]:  # noqa: ANN401 - a type of any kind
    """Whether a value is of a plain type, and the value as that type."""
    origin = get_origin(kind) or kind
    if origin is Literal:
        return value in get_args(kind) and type(value) in map(type, get_args(kind)), value
    if origin is tuple:
        values = [value] if isinstance(value, str) else value
        return isinstance(values, list), tuple(values) if isinstance(values, list) else ()
    if origin is float:
        return _number(value)
    return isinstance(value, origin) and not (origin is int and isinstance(value, bool)), value


def _number(value: object) -> tuple[bool, float]:
    """A float; YAML 1.1 takes ``2e-5`` for a text."""
    try:
        return not isinstance(value, bool | NoneType | list | dict), float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False, 0.0


def _name(kind: Any) -> str:  # noqa: ANN401 - a type of any kind
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    return "null" if kind is NoneType else getattr(get_origin(kind) or kind, "__name__", str(kind))
