"""Adapters become part of a model: LoRA, merged into float32 weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, UsageError
from hilm.extras import require
from hilm.training.methods import HEADS

if TYPE_CHECKING:
    from os import PathLike


def merge(
    adapter: str | PathLike[str], out: str | PathLike[str], *, base: str | PathLike[str] | None = None
) -> dict[str, Any]:
    """Merge a LoRA into the model it was trained on, in float32, and write that.

    Args:
        adapter: Folder of the adapter.
        out: New folder for the model.
        base: The model; by default the one that the adapter names.

    Returns:
        ``out``, ``base``, ``adapter``, ``parameters``.

    Raises:
        InputError: The folder is no adapter, of a kind that cannot be merged, or the base is quantised.
        UsageError: ``out`` exists.
    """
    adapter, out = Path(adapter), Path(out)
    settings = read_adapter(adapter)
    if settings.get("peft_type") != "LORA":
        raise InputError(
            f"{adapter} is {settings.get('peft_type')}: it changes no weights", hint="only LoRA can be merged"
        )
    if out.exists():
        raise UsageError(f"{out} exists", hint="name a new folder")
    source = str(base or settings.get("base_model_name_or_path"))
    model = apply(adapter, source, settings).merge_and_unload()
    part = out.with_name(f"{out.name}.part")
    model.save_pretrained(part)
    require("transformers").AutoTokenizer.from_pretrained(adapter).save_pretrained(part)
    part.rename(out)
    return {
        "out": str(out),
        "base": source,
        "adapter": str(adapter),
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }


def read_adapter(adapter: Path) -> dict[str, Any]:
    """Read ``adapter_config.json``.

    Raises:
        InputError: There is none.
    """
    try:
        settings: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{adapter} is no adapter", hint="a folder with adapter_config.json") from error
    return settings


def apply(adapter: Path, base: str, settings: dict[str, Any]) -> Any:  # noqa: ANN401 - a PeftModel
    """The base in float32 with the adapter on it, not merged.

    Raises:
        InputError: The base is quantised: rounding again would lose what was learned.
    """
    transformers, peft = require("transformers"), require("peft")
    require("hilm.models.resnet_bk")
    config = transformers.AutoConfig.from_pretrained(base)
    if getattr(config, "quantization_config", None):
        raise InputError(
            f"{base} is quantised: merging into rounded weights loses what was learned",
            hint="merge into the model it was quantised from: --base",
        )
    head = getattr(transformers, HEADS.get(str(settings.get("task_type")), "AutoModelForCausalLM"))
    options: dict[str, Any] = {"num_labels": labels} if (labels := _labels(adapter)) else {}
    if not Path(base).exists():
        options["revision"] = settings.get("revision")
    model = head.from_pretrained(base, dtype="float32", **options)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


def _labels(adapter: Path) -> int | None:
    """Rows of the classifier that the adapter brings."""
    from hilm.weights import open_checkpoint  # noqa: PLC0415 - only for this

    with open_checkpoint(adapter) as checkpoint:
        rows = [
            t.shape[0]
            for n, t in checkpoint.tensors.items()
            if n.endswith(("score.weight", "classifier.weight"))
        ]
    return rows[0] if rows else None
