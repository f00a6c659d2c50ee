"""The trainer of a run, made by the method's own library with every argument stated."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import transformers

from hilm.data import load_data, load_eval
from hilm.errors import UsageError
from hilm.extras import require
from hilm.training import modeling
from hilm.training.budget import KEPT
from hilm.training.config import unknown_key
from hilm.training.methods import Method, find_method, load_class
from hilm.training.rewards import load_reward
from hilm.training.rows import collator, prepare_rows

if TYPE_CHECKING:
    from hilm.training.config import FitConfig
    from hilm.training.record import Run


def build_trainer(run: Run, watch: transformers.TrainerCallback) -> Any:  # noqa: ANN401 - a Trainer of transformers or TRL
    """Make the trainer of the run's method."""
    config, name = run.config, run.method
    known = modeling.read_config(config.model)
    method = find_method(name, known.to_dict())
    tokenizer = modeling.load_tokenizer(config.model)
    rows = prepare_rows(load_data(config.data), name, method, tokenizer, config.train)
    held_out = load_eval(config.data)
    labels = count_labels(name, rows)
    run.facts["labels"] = labels
    model = modeling.load_model(config, method, labels=labels)
    model.config.pad_token_id = tokenizer.pad_token_id
    adapter = modeling.adapter_config(config, method, known.model_type)
    options: dict[str, Any] = {
        "args": load_class(method.settings)(**settings(run, method)),
        "train_dataset": rows,
        "processing_class": tokenizer,
        "callbacks": [watch],
    }
    if held_out is not None:
        options["eval_dataset"] = prepare_rows(held_out, name, method, tokenizer, config.train)
    if method.rewarded:
        options["reward_funcs"] = load_reward(config.reward)
    if method.is_trl:
        options["peft_config"] = adapter
    elif adapter is not None:
        model = _adapt(model, adapter, config)
    if (collate := collator(name, method, tokenizer, model)) is not None:
        options["data_collator"] = collate
    trainer = load_class(method.trainer)(model=model, **options)
    trainer.remove_callback(transformers.PrinterCallback)
    if config.train.precision != "bf16":
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:  # TRL rounds adapters of a quantised base to bfloat16
                parameter.data = parameter.data.float()
    return trainer


def count_labels(name: str, rows: Any) -> int | None:  # noqa: ANN401 - a datasets.Dataset
    """Outputs of the head that the method trains; None where it trains none."""
    if name == "reward":
        return 1
    return max(2, max(rows["labels"]) + 1) if name == "classify" else None


def _adapt(model: Any, adapter: Any, config: FitConfig) -> Any:  # noqa: ANN401 - models of transformers and PEFT
    peft = require("peft")
    if config.peft.kind == "qlora":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return peft.get_peft_model(model, adapter)


def settings(run: Run, method: Method) -> dict[str, Any]:
    """Arguments of the method's own configuration class; no default of a library decides precision.

    Raises:
        UsageError: ``method`` has a key that this class does not, or one that hilm sets.
    """
    config, train = run.config, run.config.train
    on_cpu = modeling.device(config) == "cpu"
    chosen: dict[str, Any] = {
        "output_dir": str(run.folder),
        "max_steps": train.steps or -1,
        "num_train_epochs": train.epochs,
        "per_device_train_batch_size": train.batch_size // config.launch.nproc,
        "per_device_eval_batch_size": train.batch_size // config.launch.nproc,
        "gradient_accumulation_steps": train.grad_accum,
        "learning_rate": config.learning_rate,
        "warmup_steps": train.warmup,
        "bf16": train.precision == "bf16",
        "fp16": train.precision == "fp16",
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if on_cpu and config.launch.nproc > 1 else None,
        "dataloader_pin_memory": not on_cpu,
        "seed": train.seed,
        "data_seed": train.seed,
        "report_to": list(config.track.to) or "none",
        "project": config.track.project,
        "activation_checkpointing": train.activation_checkpointing is True,
        "logging_steps": train.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": train.save_every,
        "eval_strategy": "steps" if train.eval_every else "no",
        "eval_steps": train.eval_every,
        "save_total_limit": KEPT,
        "disable_tqdm": True,
        "fsdp": config.launch.fsdp or "",
        "fsdp_config": config.launch.fsdp_config,
        "deepspeed": config.launch.deepspeed,
    }
    known = {item.name for item in dataclasses.fields(load_class(method.settings))}
    chosen |= {name: getattr(train, name) for name in ("max_length", "packing") if name in known}
    check_method_keys(config.method, known, set(chosen))
    return chosen | config.method


def check_method_keys(asked: dict[str, Any], known: set[str], ours: set[str]) -> None:
    """Refuse keys of ``method`` that the configuration class lacks, and those that hilm sets.

    Raises:
        UsageError: There is one.
    """
    for key in asked:
        if key in ours:
            raise UsageError(f"method.{key} is set by hilm", hint="see train, launch and track")
        if key not in known:
            raise unknown_key(key, sorted(known), "method.")
