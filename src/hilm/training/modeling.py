"""The model and tokenizer of a run, with whatever PEFT adds to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from hilm.errors import InputError, NetworkError
from hilm.extras import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hilm.training.config import FitConfig, ModelConfig
    from hilm.training.methods import Method

HEADS = ("lm_head", "score", "classifier", "pooler")
"""Modules that stay as they are when a model is quantised: a quantised head cannot be trained."""


def read_config(model: ModelConfig) -> transformers.PreTrainedConfig:
    """Read the model's configuration; ResNet-BK is known too.

    Raises:
        InputError: There is no model.
        NetworkError: The Hub does not give it.
    """
    import hilm.models.resnet_bk  # noqa: F401, PLC0415 - registers its classes

    try:
        return transformers.AutoConfig.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _absent(model, error) from error


def _absent(model: ModelConfig, error: Exception) -> InputError | NetworkError:
    reason = str(error).strip().splitlines()[0]
    if Path(model.path).exists():
        return InputError(f"{model.path}: {reason}", hint="give a transformers model folder")
    return NetworkError(
        f"no model {model.path}: {reason}", hint="give a folder that exists, or check the id and the network"
    )


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer; without a token for padding the one that ends texts pads.

    Raises:
        InputError: The model has no tokenizer, or one without any such token.
        NetworkError: The Hub does not give it.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        if Path(model.path).exists():
            hint = "tokenizer.save_pretrained puts one beside the model"
            raise InputError(f"{model.path} has no tokenizer that can be read", hint=hint) from error
        raise _absent(model, error) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"the tokenizer of {model.path} has no token that pads or ends a text",
                hint="tokenizer.add_special_tokens({'pad_token': '<pad>'}), and save it again",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    config: FitConfig,
    method: Method,
    *,
    labels: int | None = None,
    source: str | None = None,
    plain: bool = False,
) -> PreTrainedModel:
    """Load the model as this run trains it.

    Full training holds float32 masters; a frozen base stays in the type it is stored in.

    Args:
        config: The run.
        method: Which head it needs.
        labels: Outputs of a classifier; as its configuration says when None.
        source: A folder to load instead of the model the run starts from.
        plain: In float32 and not quantised, whatever the run says.
    """
    kind, model = config.peft.kind, config.model
    dtype = model.dtype if model.dtype != "auto" or kind != "full" else "float32"
    options: dict[str, Any] = {
        "dtype": "float32" if plain else dtype,
        "revision": None if source else model.revision,
        "trust_remote_code": model.trust_remote_code,
    }
    if labels is not None:
        options["num_labels"] = labels
    if kind == "qlora" and not plain:
        options["quantization_config"] = _quantisation(config)
    try:
        loaded = getattr(transformers, method.head).from_pretrained(source or model.path, **options)
    except (OSError, ValueError) as error:
        raise _absent(model, error) from error
    if device(config) == "cuda" and kind != "qlora":
        loaded = loaded.to("cuda")
    if kind == "qlora" and not plain:
        _release_file(loaded)
    return loaded


def _release_file(model: PreTrainedModel) -> None:
    """Copy what was not quantised: views of it keep every page of the file that was quantised mapped."""
    for parameter in model.parameters():
        if type(parameter) is torch.nn.Parameter:
            parameter.data = parameter.data.clone()


def _quantisation(config: FitConfig) -> transformers.BitsAndBytesConfig:
    """NF4 with quantised scales, or LLM.int8; heads are left alone."""
    require("bitsandbytes")
    if config.peft.bits == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(HEADS))
    compute = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=list(HEADS),
    )


def adapter_config(config: FitConfig, method: Method, model_type: str) -> Any | None:  # noqa: ANN401 - a PeftConfig
    """What PEFT adds; None when everything is trained."""
    peft, settings = require("peft"), config.peft
    common = {"task_type": method.task, "revision": config.model.revision}
    match settings.kind:
        case "lora" | "qlora":
            targets = find_targets(settings.targets, model_type)
            return peft.LoraConfig(
                **common,
                r=settings.r,
                lora_alpha=settings.alpha,
                lora_dropout=settings.dropout,
                target_modules=targets if isinstance(targets, str) else list(targets),
            )
        case "prefix":
            return peft.PrefixTuningConfig(**common, num_virtual_tokens=settings.virtual_tokens)
        case "prompt":
            text = settings.init_text
            return peft.PromptTuningConfig(
                **common,
                num_virtual_tokens=settings.virtual_tokens,
                prompt_tuning_init="TEXT" if text else "RANDOM",
                prompt_tuning_init_text=text,
                tokenizer_name_or_path=config.model.path if text else None,
            )
    return None


def find_targets(asked: str | tuple[str, ...], model_type: str) -> str | tuple[str, ...]:
    """The matrices LoRA adapts: those asked for, or PEFT's choice for this model type, or all linear ones."""
    if asked != "auto":
        return asked
    table = require("peft.utils.constants").TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    known = table.get(model_type, "all-linear")
    return known if isinstance(known, str) else tuple(known)


def device(config: FitConfig) -> str:
    """``cuda`` or ``cpu``."""
    if config.launch.device != "auto":
        return config.launch.device
    return "cuda" if torch.cuda.is_available() else "cpu"
