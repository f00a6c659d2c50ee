"""The PyTorch side of an export: any transformers model, in the precision asked for, and inputs for it."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from torch import Tensor, nn

from hilm.errors import InputError, NetworkError, NotACheckpoint
from hilm.models import resnet_bk
from hilm.weights.folder import is_hub_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

Inputs = dict[str, Tensor]

LONGEST = 1024
"""Longest sequence that is verified, unless the caller names another."""


def load_model(model: PreTrainedModel | str | Path) -> PreTrainedModel:
    """Return the model given, or float32 from a folder or the Hub, with its own head.

    Raises:
        NotACheckpoint: The folder holds no model that transformers knows.
        NetworkError: The Hub does not give the model.
    """
    if isinstance(model, nn.Module):
        return model
    name = str(model)
    if not Path(name).is_dir() and not is_hub_id(name):
        raise NotACheckpoint(f"{name} is neither a model folder nor a Hub id")
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        head = (config.architectures or ["AutoModel"])[0]
        home = transformers if hasattr(transformers, head) else resnet_bk
        loaded: PreTrainedModel = getattr(home, head, transformers.AutoModel).from_pretrained(
            name, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if Path(name).exists():
            raise NotACheckpoint(f"{name}: {reason}", hint="give a transformers model folder") from error
        raise NetworkError(f"{name}: {reason}", hint="check the spelling and the connection") from error
    return loaded.eval()


def cast(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """Return the model in a precision; a copy, unless it already is.

    float64 includes ResNet-BK's recurrence. float16 leaves out what the model keeps in float32.
    """
    dtype = getattr(torch, precision)
    if all(weight.dtype == dtype for weight in model.parameters()):
        return model
    made = copy.deepcopy(model).to(dtype)
    if dtype == torch.float64 and hasattr(made.config, "core_dtype"):
        made.config.core_dtype = "float64"
    strict = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    if dtype == torch.float16:
        for (name, weight), original in zip(made.named_parameters(), model.parameters(), strict=True):
            if any(part in name for part in strict):
                weight.data = original.detach().float()
    return made


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off and gradients too; give the model back as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def longest(model: PreTrainedModel) -> int | None:
    """Return how many positions a model has an embedding for; None when it takes any length."""
    if model.config.model_type == resnet_bk.ResNetBKConfig.model_type:
        return None
    tables = [getattr(module, "position_embeddings", None) for module in model.modules()]
    rows = [
        table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        for table in tables
        if isinstance(table, nn.Embedding)
    ]
    limit = getattr(model.config, "max_position_embeddings", None)
    return min([*rows, *([limit] if limit else [])], default=None)


def sample_inputs(model: PreTrainedModel, batch: int, length: int) -> Inputs:
    """Draw inputs: ids below the vocabulary's size with a mask, or pixels.

    With more than one row the first is padded on the left.

    Raises:
        InputError: The model takes something else.
    """
    random = torch.Generator().manual_seed(length)
    main, config = model.main_input_name, model.config
    if main == "pixel_values" and hasattr(config, "image_size"):
        sides = config.image_size
        sides = (sides, sides) if isinstance(sides, int) else tuple(sides)
        return {main: torch.rand(batch, config.num_channels, *sides, generator=random)}
    if main != "input_ids":
        raise InputError(f"{type(model).__name__} takes {main}", hint="pass inputs={name: tensor}")
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(rows, (batch, length), generator=random)
    mask = torch.ones_like(ids)
    if batch > 1:
        mask[0, : length // 3] = 0
    inputs = {main: ids, "attention_mask": mask}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(1)
    return inputs


def cases(model: PreTrainedModel, lengths: tuple[int, ...] | None, max_length: int | None) -> list[Inputs]:
    """Draw inputs over several batches and lengths: 1, 2, 17, and the two longest, or the lengths given."""
    if model.main_input_name != "input_ids":
        return [sample_inputs(model, batch, 1) for batch in (1, 2, 3)]
    if lengths is None:
        limit = min(max_length or LONGEST, longest(model) or LONGEST)
        lengths = tuple(sorted({n for n in (1, 2, 17, limit - 1, limit) if 0 < n <= limit}))
    return [sample_inputs(model, (1, 3, 2, 4, 1)[index % 5], length) for index, length in enumerate(lengths)]
