"""A task on a model, made once and called often; results are plain JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, UsageError
from hilm.extras import require
from hilm.inference.answers import Answerer
from hilm.inference.loading import find_model, load, longest
from hilm.inference.seq2seq import Rewriter
from hilm.inference.tasks import Task, find_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Input = Any
"""A text; for question-answering ``{"question", "context"}``, for zero-shot-classification a text or
``{"text", "labels"}``, for text-generation also a list of messages."""


@dataclass(slots=True)
class Runner:
    """A task on a loaded model.

    Attributes:
        task: The task.
        name: Folder or Hub id of the model.
        revision: Of it.
        model: In eval mode.
        tokenizer: Its tokenizer.
        batch_size: Inputs at a time.
        options: Of every call, unless the call says otherwise.
        notes: What was decided on the way.
    """

    task: Task
    name: str
    revision: str | None
    model: Any
    tokenizer: Any
    batch_size: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _engine: Callable[..., list[Any]] = field(init=False)
    _limit: int | None = field(init=False)

    def __post_init__(self) -> None:
        self._limit = longest(self.model, self.tokenizer)
        if self.task.name == "question-answering":
            self._engine = Answerer(self.model, self.tokenizer)
        elif self.task.head == "Seq2SeqLM":
            self._engine = Rewriter(self.task, self.model, self.tokenizer)
        else:
            self._engine = _pipeline(self.task, self.model, self.tokenizer)

    def __call__(self, inputs: Input | list[Input], **options: Any) -> Any:  # noqa: ANN401 - JSON
        """Do the task.

        Args:
            inputs: One input, or a list of them; messages of a chat are one input.
            options: Those of the task, such as ``top_k`` or ``max_new_tokens``.

        Returns:
            One result; for a list a list, in order.

        Raises:
            UsageError: An option is unknown or does not fit, or an input is empty or of the wrong kind.
            InputError: An input is too long for the model.
        """
        wanted = self.options | options
        unknown = sorted(set(wanted) - self.task.options)
        if unknown:
            raise UsageError(
                f"{self.task.name} has no option {unknown[0]!r}",
                hint=f"it has {', '.join(sorted(self.task.options))}",
            )
        if not _is_one(inputs):
            return self._run(inputs, wanted)
        result = self._run([inputs], wanted)[0]
        return [result] if self.task.listed and isinstance(result, dict) else result

    def stream(self, inputs: Iterable[Input], **options: Any) -> Iterator[Any]:  # noqa: ANN401 - JSON
        """Yield results of inputs without end, a batch at a time."""
        rest = iter(inputs)
        while batch := list(islice(rest, self.batch_size)):
            yield from self(batch, **options)

    def info(self) -> dict[str, Any]:
        """Return what runs where: ``task``, ``model``, ``revision``, ``class``, ``device`` and ``dtype``."""
        return {
            "task": self.task.name,
            "model": self.name,
            "revision": self.revision,
            "class": type(self.model).__name__,
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
            "notes": list(self.notes),
        }

    def _run(self, inputs: Sequence[Input], options: dict[str, Any]) -> list[Any]:
        if not inputs:
            return []
        ready = [self._check(index, item, options) for index, item in enumerate(inputs)]
        options.pop("labels", None)
        try:
            results = self._engine(ready, self.batch_size, **options)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{self.task.name}: {error}", hint="check the options' values") from error
        safe: list[Any] = json_safe(results, self.notes)
        return safe

    def _check(self, index: int, item: Input, options: dict[str, Any]) -> Input:
        """Return an input as the engine takes it."""
        fields = {
            "question-answering": ("question", "context"),
            "zero-shot-classification": ("text", "labels"),
        }
        wanted = fields.get(self.task.name, ())
        if "labels" in wanted:
            given = item if isinstance(item, dict) else {"text": item}
            item = {"labels": options.get("labels")} | given
        if self.task.name == "text-generation" and isinstance(item, list):
            if self.tokenizer.chat_template is None:
                raise UsageError("messages need a tokenizer with a chat template", hint="give a plain prompt")
            return item
        texts = [item.get(name) for name in wanted] if wanted and isinstance(item, dict) else [item]
        if len(texts) != (len(wanted) or 1) or not all(map(_holds, texts)):
            kind = " and ".join(wanted) or "a text"
            raise UsageError(f"input {index}: {self.task.name} takes {kind}, not empty", hint="leave it out")
        if self.task.name == "fill-mask":
            item = self._mask(index, item)
        return item if self.task.name == "question-answering" else self._fits(index, item)

    def _mask(self, index: int, text: str) -> str:
        mask = self.tokenizer.mask_token
        text = text.replace("[MASK]", mask or "")
        if not mask or mask not in text:
            raise UsageError(
                f"input {index} has no mask", hint=f"write [MASK]{f' or {mask}' if mask else ''}"
            )
        return text

    def _fits(self, index: int, item: Input) -> Input:
        text = item["text"] if isinstance(item, dict) else item
        tokens = len(self.tokenizer(text, verbose=False)["input_ids"])
        if self._limit is not None and tokens > self._limit:
            raise InputError(
                f"input {index} has {tokens:,} tokens; the model takes {self._limit:,}", hint="split it"
            )
        return item


def _holds(value: object) -> bool:
    return bool(value.strip() if isinstance(value, str) else isinstance(value, list) and value)


def _is_one(inputs: Input | list[Input]) -> bool:
    if isinstance(inputs, list):
        return bool(inputs) and all(isinstance(item, dict) and "role" in item for item in inputs)
    return True


def _pipeline(task: Task, model: Any, tokenizer: Any) -> Callable[..., list[Any]]:  # noqa: ANN401 - of transformers
    """Wrap a pipeline of transformers so that a list gives a list."""
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if task.name == "text-generation":
        tokenizer.padding_side = "left"  # so that every prompt ends where its continuation begins
    pipe = require("transformers").pipeline(task.name, model=model, tokenizer=tokenizer, device=model.device)

    def run(inputs: Sequence[Input], batch_size: int, **options: Any) -> list[Any]:  # noqa: ANN401 - JSON
        if options.pop("grouped_entities", False):
            options["aggregation_strategy"] = "simple"
        if task.name == "zero-shot-classification":
            return _classify(pipe, inputs, batch_size, options)
        results: list[Any] = pipe(list(inputs), batch_size=batch_size, **options)
        return [results] if task.name == "fill-mask" and len(inputs) == 1 else results  # it unpacks that one

    return run


def _classify(pipe: Any, inputs: Sequence[Input], batch_size: int, options: dict[str, Any]) -> list[Any]:  # noqa: ANN401
    """Classify texts that have the same labels together."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, item in enumerate(inputs):
        groups.setdefault(tuple(item["labels"]), []).append(index)
    results: list[Any] = [None] * len(inputs)
    for labels, chosen in groups.items():
        texts = [inputs[index]["text"] for index in chosen]
        found = pipe(texts, candidate_labels=list(labels), batch_size=batch_size, **options)
        for index, result in zip(chosen, found, strict=True):
            results[index] = result
    return results


def json_safe(value: Any, notes: list[str]) -> Any:  # noqa: ANN401 - JSON
    """Return a result as JSON can hold it; NaN and infinities become None, with a note.

    Raises:
        InputError: It holds bytes.
    """
    if isinstance(value, dict):
        return {str(key): json_safe(item, notes) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item, notes) for item in value]
    if hasattr(value, "tolist"):  # arrays and tensors, and their scalars
        return json_safe(value.tolist(), notes)
    if isinstance(value, bytes):
        raise InputError("the model gave bytes, which JSON has no place for")
    if isinstance(value, float) and not math.isfinite(value):
        notes.append("a figure is not finite: it is given as null")
        return None
    return value


def create(
    task: str,
    model: str | None = None,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    device_map: str | None = None,
    batch_size: int = 1,
    allow_random_head: bool = False,
    trust_remote_code: bool = False,
    **options: Any,  # noqa: ANN401 - those of the task
) -> Runner:
    """Load a model for a task, once.

    Args:
        task: One of :data:`hilm.inference.TASKS`, ``text-classification``, ``token-classification`` or
            ``translation_XX_to_YY``.
        model: Folder or Hub id; the task's own when None.
        revision: Branch, tag or commit on the Hub.
        device: ``auto`` is cuda, else mps, else cpu.
        dtype: ``auto`` is that of the file, but float32 for float16 on the CPU.
        device_map: Instead of ``device``: how accelerate spreads the model.
        batch_size: Inputs at a time.
        allow_random_head: Go on although the head was never trained.
        trust_remote_code: Run code that comes with the model.
        options: Of every call.

    Raises:
        UsageError: The task, device or dtype does not exist, or the model cannot do the task.
        InputError: There is no such model, or its files are damaged.
        NetworkError: The Hub does not give the model.
        MissingExtra: torch or transformers is not installed.
    """
    if device != "auto" and device_map is not None:
        raise UsageError("device and device_map exclude each other", hint="give one of them")
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: it is at least 1")
    found = find_task(task)
    name, revision, notes = find_model(found, model, revision)
    loaded, tokenizer, more = load(
        found,
        name,
        revision=revision,
        device=device,
        dtype=dtype,
        device_map=device_map,
        allow_random_head=allow_random_head,
        trust_remote_code=trust_remote_code,
    )
    return Runner(found, name, revision, loaded, tokenizer, batch_size, options, notes + more)


_kept = lru_cache(maxsize=2)(create)


def run_task(
    task: str,
    inputs: Input | list[Input],
    model: str | None = None,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    **options: Any,  # noqa: ANN401 - those of the task
) -> Any:  # noqa: ANN401 - JSON
    """Do a task; the last two models are kept, so a loop does not load them again.

    See :func:`create` for the arguments and errors, :class:`Runner` for inputs, options and results.
    """
    return _kept(task, model, revision=revision, device=device, dtype=dtype)(inputs, **options)
