"""Which library for what: the documented tree, answered for a model and this machine. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hilm.errors import UsageError
from hilm.inference.machine import Machine, look_around
from hilm.inference.tasks import TASKS
from hilm.store import plan
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

LARGE, VERY_LARGE = 1e9, 7e9
RULES = (
    "from 1 B parameters, or where full training does not fit: PEFT (LoRA)",
    "from 7 B parameters, or where LoRA does not fit: PEFT on a quantised base (QLoRA)",
)


@dataclass(frozen=True, slots=True)
class Goal:
    """What somebody wants to do, the library for it, and a command that does it."""

    question: str
    library: str
    command: str


GOALS: Mapping[str, Goal] = {
    "download": Goal("Download pre-trained models", "Hub", "hf download {model}"),
    "data": Goal("Load datasets", "datasets", "hilm data preview train.csv"),
    "infer": Goal("Simple inference", "Transformers (pipelines)", "hilm run {task} --model {model} TEXT"),
    "finetune": Goal(
        "Fine-tune models",
        "Transformers + Accelerate",
        "hilm fit sft config.yaml model.path={model} peft.kind={peft}",
    ),
    "align": Goal(
        "Fine-tune with human feedback",
        "TRL + PEFT",
        "hilm fit dpo config.yaml model.path={model} peft.kind={peft}",
    ),
    "distribute": Goal(
        "Distribute training", "Accelerate", "hilm fit sft config.yaml model.path={model} --nproc {devices}"
    ),
}
"""The tree of the guide, in its order."""

_METHODS = {"full fp32": "full", "lora": "lora", "qlora nf4": "qlora"}


def guide(
    goal: str | None = None, model: str | None = None, *, machine: Machine | None = None
) -> dict[str, Any]:
    """Answer "what do you want to do?".

    Args:
        goal: One of :data:`GOALS`; all of them when None.
        model: Folder, Hub id or URL; its headers decide between the ways to fine-tune.
        machine: Where; this one when None.

    Returns:
        ``answers`` (``goal``, ``question``, ``library``, ``command``); with a model also ``model``,
        ``parameters``, ``machine``, ``ways`` (``method``, ``bytes`` with 20 % spare, ``fits``), ``peft`` (the
        way chosen; None where none fits), ``rules``.

    Raises:
        UsageError: There is no such goal.
        InputError: There is no such checkpoint.
    """
    if goal is not None and goal not in GOALS:
        raise UsageError(f"there is no goal {goal!r}", hint=f"one of {', '.join(GOALS)}")
    chosen = GOALS if goal is None else {goal: GOALS[goal]}
    known: dict[str, Any] = {}
    words = {"model": "MODEL", "task": "TASK", "peft": "lora", "devices": "2"}
    if model is not None:
        known = _measure(model, machine or look_around())
        machine_devices = max(2, known["machine"]["devices"])
        words = {
            "model": model,
            "task": _task(model),
            "peft": known["peft"] or "qlora",
            "devices": machine_devices,
        }
    answers = [
        {
            "goal": name,
            "question": entry.question,
            "library": "PEFT + Accelerate"
            if name == "finetune" and known and known["peft"] != "full"
            else entry.library,
            "command": entry.command.format(**words),
        }
        for name, entry in chosen.items()
    ]
    return {"answers": answers, **known}


def _measure(model: str, machine: Machine) -> dict[str, Any]:
    """Compare what each way to train takes with what the machine has."""
    planned = plan(model)
    rows = {_METHODS[row["method"]]: row["safe"] for row in planned["training"] if row["method"] in _METHODS}
    ways = [
        {"method": name, "bytes": size, "fits": size is not None and size <= machine.memory}
        for name, size in rows.items()
    ]
    least = 2 if planned["parameters"] >= VERY_LARGE else 1 if planned["parameters"] >= LARGE else 0
    return {
        "model": planned["model"],
        "parameters": planned["parameters"],
        "machine": {"device": machine.device, "devices": machine.devices, "memory": machine.memory},
        "ways": ways,
        "peft": next((way["method"] for way in ways[least:] if way["fits"]), None),
        "rules": list(RULES),
    }


def _task(model: str) -> str:
    """Return the first task a model's head is for, as its configuration names it."""
    with open_checkpoint(model) as checkpoint:
        written = " ".join((checkpoint.config or {}).get("architectures") or ())
    endings = {"LMHeadModel": "text-generation", "ForConditionalGeneration": "summarization"}
    heads = {f"For{task.head}": name for name, task in reversed(list(TASKS.items()))} | endings
    return next((name for ending, name in heads.items() if written.endswith(ending)), "TASK")
