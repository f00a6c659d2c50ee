"""Transformers models and state dicts, loaded strictly and without running code of strangers."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError
from hilm.extras import require
from hilm.reel.decoder import Reel
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn


def load_transformers(path: str, weights: str = "", attention: str | None = None) -> nn.Module:
    """Load a transformers model strictly, as the class its config names, and run no code of strangers.

    Args:
        path: Folder or Hub id.
        weights: A checkpoint or reel whose weights it gets instead of its own.
        attention: Its attention implementation; its own choice when None.

    Raises:
        InputError: There is no config, no such architecture, or weights do not fit it.
    """
    transformers = require("transformers")
    config = read_config(path)
    name = (getattr(config, "architectures", None) or ["AutoModel"])[0]
    kind = getattr(transformers, name, transformers.AutoModel)
    state = read_weights(weights) if weights else None
    options = {"output_loading_info": True, "attn_implementation": attention}
    with quiet():
        try:
            if state is None:
                model, report = kind.from_pretrained(path, dtype="auto", **options)
            else:
                model, report = kind.from_pretrained(None, config=config, state_dict=state, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{path}: cannot be loaded: {first_line(error)}") from error
    lacking = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if lacking or report["unexpected_keys"]:
        raise InputError(
            f"{weights or path}: weights do not fit: missing or misshapen {lacking or 'none'}, "
            f"unexpected {sorted(report['unexpected_keys']) or 'none'}",
            hint="the config must be that of the weights",
        )
    return model


def load_adapter(base: str, folder: str) -> nn.Module:
    """Load a PEFT adapter, not merged, into its base model.

    Args:
        base: Folder or Hub id.
        folder: The adapter.

    Raises:
        InputError: The adapter cannot be read, or does not fit the base.
    """
    peft, plain = require("peft"), load_transformers(base)
    try:
        with quiet():
            adapted = peft.PeftModel.from_pretrained(plain, folder, autocast_adapter_dtype=False)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: no adapter of {base}: {first_line(error)}", hint="BASE+ADAPTER names both"
        ) from error
    model: nn.Module = adapted.base_model.model
    return model


def read_config(path: str) -> Any:  # noqa: ANN401 - transformers' config
    """Read a transformers config.

    Raises:
        InputError: There is none, or of a type that is not known.
    """
    transformers = require("transformers")
    try:
        return transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: no usable config.json: {first_line(error)}", hint="give a model folder"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and peft from drawing bars, and from warning of their own old names."""
    logging = require("transformers").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(category=FutureWarning, action="ignore"):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_weights(spec: str) -> dict[str, Tensor]:
    """Read a reel or any checkpoint as a state dict of float32 tensors."""
    torch = require("torch")
    kind, colon, rest = spec.partition(":")
    if colon and kind == "reel":
        with Reel.open(rest) as reel:
            return {name: torch.from_numpy(reel.tensor(name)) for name in reel.tensors}
    with open_checkpoint(rest if colon and kind in {"safetensors", "gguf"} else spec) as checkpoint:
        weights = [name for name, info in checkpoint.tensors.items() if info.is_weight]
        return {name: torch.from_numpy(checkpoint.array(name).copy()) for name in weights}
