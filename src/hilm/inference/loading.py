"""A model with its tokenizer, on a device, with the head its task needs; or a plain reason why not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import HilmError, InputError, NetworkError, OfflineError, UsageError
from hilm.extras import choose_device, require
from hilm.inference.tasks import check_head
from hilm.weights import open_checkpoint
from hilm.weights.folder import is_hub_id

if TYPE_CHECKING:
    from hilm.inference.tasks import Task

PRECISIONS = ("auto", "float32", "float16", "bfloat16")


def find_model(task: Task, model: str | None, revision: str | None) -> tuple[str, str | None, list[str]]:
    """Return the model, its revision and notes; the task's own where none is named.

    Raises:
        InputError: There is no such model.
        NetworkError: The Hub does not give it; OfflineError where it may not be asked.
    """
    name, revision = (task.model, task.revision) if model is None else (model, revision)
    if "/" in name and not Path(name).exists() and not is_hub_id(name):
        raise InputError(f"there is no folder {name}", hint="give a model folder or organisation/name")
    try:
        where = f"hf://{name}" if model is None else name
        with open_checkpoint(where, revision=revision) as checkpoint:  # headers only: are the files whole?
            size = sum(file.size for file in checkpoint.files) / 1e6
    except OfflineError as error:
        raise OfflineError(error.message, hint="name a model folder: --model FOLDER") from error
    return name, revision, [f"no model named: this is {name}, {size:,.0f} MB"] if model is None else []


def load(
    task: Task,
    name: str,
    *,
    revision: str | None,
    device: str,
    dtype: str,
    device_map: str | None,
    allow_random_head: bool,
    trust_remote_code: bool,
) -> tuple[Any, Any, list[str]]:
    """Load a model in eval mode and its tokenizer.

    Returns:
        Model, tokenizer, notes.

    Raises:
        UsageError: The head does not fit the task, or there is no such device or dtype.
        InputError: The files are damaged or incomplete.
    """
    transformers, torch = require("transformers"), require("torch")
    if dtype not in PRECISIONS:
        raise UsageError(f"there is no dtype {dtype!r} here", hint=f"one of {', '.join(PRECISIONS)}")
    where = {} if device_map is None else {"device_map": device_map}
    place = choose_device(device) if device_map is None else None
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = _read_config(name, source)
        if not allow_random_head:
            check_head(task, config)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **source)
        auto = getattr(transformers, f"AutoModelFor{task.head}")
        model, report = auto.from_pretrained(name, dtype=dtype, output_loading_info=True, **where, **source)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, HilmError):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        found = InputError if Path(name).exists() else NetworkError
        raise found(f"{name}: {reason}", hint="is it a whole transformers model?") from error
    if report["missing_keys"] and not allow_random_head:
        raise UsageError(
            f"{name}: the head is freshly initialised: {', '.join(sorted(report['missing_keys'])[:3])}",
            hint="fine-tune it first, or --allow-random-head for a try",
        )
    _check_vocabulary(name, model, tokenizer)
    notes = []
    if dtype == "auto" and place == "cpu" and model.dtype == torch.float16:
        model, notes = model.float(), ["float16 weights are computed in float32 on the CPU"]
    return (model if place is None else model.to(place)).eval(), tokenizer, notes


def _read_config(name: str, source: dict[str, Any]) -> Any:  # noqa: ANN401 - of transformers
    """Read config.json; a ResNet-BK is known without the code it carries."""
    transformers = require("transformers")
    kind = transformers.PreTrainedConfig.get_config_dict(name, revision=source["revision"])[0]
    if kind.get("model_type") == "resnet_bk":
        require("hilm.models.resnet_bk")
    return transformers.AutoConfig.from_pretrained(name, **source)


def _check_vocabulary(name: str, model: Any, tokenizer: Any) -> None:  # noqa: ANN401 - of transformers
    rows, words = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if words > rows:
        raise InputError(
            f"{name}: the tokenizer has {words:,} entries, the model {rows:,}",
            hint="it belongs to another model",
        )
    if words <= len(tokenizer.all_special_tokens):
        raise InputError(f"{name}: the tokenizer has no vocabulary", hint="its files are missing; fetch them")


def longest(model: Any, tokenizer: Any) -> int | None:  # noqa: ANN401 - of transformers
    """Return how many tokens the model takes; None for any number."""
    return min(
        (
            n
            for n in (require("hilm.ship.torch_model").longest(model), tokenizer.model_max_length)
            if n and n < 1e9
        ),
        default=None,
    )
