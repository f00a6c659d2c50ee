"""What a run leaves behind besides weights: the difference, the parent checked against them, parity, a card.

Whatever is stated is read from the files or measured on the reloaded model.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import InputError, UsageError, VerificationError
from hilm.files import write_file
from hilm.lineage.verdict import DIGEST_P
from hilm.parity.metrics import measure
from hilm.ship.card_facts import create_model_card
from hilm.store import Store, diff
from hilm.training.difference import draw_difference, full_difference, low_rank_difference, module_name
from hilm.training.merging import apply, merge, read_adapter
from hilm.training.record import Run, weights_key
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from os import PathLike

    from hilm.weights.checkpoint import Checkpoint

TOLERANCE = 1e-5
"""Largest difference of outputs that float32 arithmetic explains."""

SHOWN = {"loss", "eval_loss", "accuracy", "rewards/accuracies", "reward", "mean_token_accuracy"}
"""Figures of the last step that a card states."""

CERTAIN = 1e-6
"""Largest p-value of a parent that counts as confirmed."""


def finish(folder: str | PathLike[str], *, store: Store | None = None) -> dict[str, Any]:
    """Write a run's reports and card, check its parent against the weights, and catalogue both.

    A second time changes nothing.

    Args:
        folder: The run.
        store: Where model and base are catalogued; the default store when None.

    Returns:
        ``output``, ``metrics``, ``parent``, ``relation``, ``p_value``, ``confirmed``, ``parity``.

    Raises:
        InputError: The run is not trained yet.
        VerificationError: The weights do not confirm the parent, a frozen tensor changed, or the result does
            not behave as it did in memory.
    """
    run = Run.open(Path(folder))
    if run.facts.get("outcome") not in {"trained", "finished", "unconfirmed"}:
        raise InputError(f"{folder} is not trained yet", hint="hilm fit … --resume")
    if run.config.peft.kind != "full":
        _name_base(run)
    parity = check_parity(run)
    run.report("parity", parity)
    lineage, roles = compare_base(run)
    lineage["confirmed"] = lineage["confirmed"] and parity["ok"]
    run.report("difference", {"roles": roles})
    write_file(run.folder / "difference.png", draw_difference(roles))
    run.report("lineage", lineage)
    run.note(outcome="finished" if lineage["confirmed"] else "unconfirmed")
    write_card(run)
    if not lineage["confirmed"]:
        raise VerificationError(
            f"{run.result} is declared to come from {lineage['parent']}; its weights say "
            f"{lineage['relation']} (p {lineage['p_value']:.3g}), outputs differ by {parity['max_abs']:.3g}",
            hint="is the base still the model that the run began with?",
        )
    catalogue(run, store or Store())
    if run.config.publish.enabled:
        from hilm.ship.upload import push  # noqa: PLC0415 - only publishing needs the Hub

        push(run.result, str(run.config.publish.repo), private=run.config.publish.private)
    return {
        "output": str(run.result),
        "metrics": run.facts["metrics"],
        "parent": lineage["parent"],
        "relation": lineage["relation"],
        "p_value": lineage["p_value"],
        "confirmed": True,
        "parity": parity,
    }


def _name_base(run: Run) -> None:
    """Let the adapter name its base by its public id, where it has one."""
    if run.config.model.id:
        path = run.result / "adapter_config.json"
        settings = read_adapter(run.result) | {"base_model_name_or_path": run.config.model.id}
        write_file(path, json.dumps(settings, indent=2, sort_keys=True).encode())


def merged(run: Run) -> Path:
    """Folder of whole weights: what was trained, or for a LoRA the model it is merged into."""
    return run.folder / "merged" if run.config.peft.kind in {"lora", "qlora"} else run.result


def check_parity(run: Run) -> dict[str, Any]:
    """Compare outputs on the fixed input: in memory, reloaded, merged.

    Returns:
        ``ok``, ``max_abs``, ``tolerance`` and per comparison its largest absolute difference: ``reloaded``
        (against memory); for a LoRA ``merged`` (against adapter and base, all float32); for a quantised base
        also ``dequantised`` (memory against float32 base and adapter).
    """
    from hilm.training.methods import find_method  # noqa: PLC0415 - with it
    from hilm.training.modeling import load_model, read_config  # noqa: PLC0415 - torch is slow to import
    from hilm.training.worker import probe  # noqa: PLC0415 - the same

    config = run.config
    before = np.load(run.folder / "report" / "probe.npy", allow_pickle=False)
    method = find_method(run.method, read_config(config.model).to_dict())
    if config.peft.kind == "full":
        outputs = {"reloaded": (before, probe(load_model(config, method, source=str(run.result))))}
    else:
        import peft  # noqa: PLC0415 - slow to import

        labels = run.facts.get("labels")
        model = load_model(config, method, labels=labels)
        model = peft.PeftModel.from_pretrained(model, run.result)
        outputs = {"reloaded": (before, probe(model))}
    if config.peft.kind in {"lora", "qlora"}:
        if not merged(run).exists():
            merge(run.result, merged(run), base=config.model.path)
        plain = probe(apply(run.result, config.model.path, read_adapter(run.result)))
        whole = replace(config, peft=replace(config.peft, kind="full"))
        outputs["merged"] = (plain, probe(load_model(whole, method, source=str(merged(run)), plain=True)))
        if config.peft.kind == "qlora":
            outputs["dequantised"] = (before, plain)
    figures = {name: measure(a, b).max_abs for name, (a, b) in outputs.items()}
    largest = max(value for name, value in figures.items() if name != "dequantised")
    return {"ok": largest <= TOLERANCE, "max_abs": largest, "tolerance": TOLERANCE, **figures}


def compare_base(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check the parent against the weights, and measure the difference.

    Returns:
        ``parent``, ``child``, ``relation``, ``p_value``, ``sentence``, ``confirmed``; and figures by role.

    Raises:
        VerificationError: A tensor changed that was frozen.
    """
    config = run.config
    parent = config.model.id or Path(config.model.path).name
    with open_checkpoint(config.model.address) as base:
        same = weights_key(base) == run.facts["base"]["weights"]
        if config.peft.kind in {"prefix", "prompt"}:
            relation, p_value = ("subset", DIGEST_P) if same else ("independent", 1.0)
            verb = "is" if same else "is NOT"
            sentence = f"{parent} {verb} the model that {run.facts['trainable']} values were added to"
            roles = full_difference(base, base, [(name, name) for name in base.tensors])
        else:
            judged = diff(str(merged(run)), config.model.address)
            relation, p_value, sentence = (judged[key] for key in ("relation", "p_value", "sentence"))
            roles = _measure(run, base, judged, frozen=same)
    lineage = {
        "parent": parent,
        "child": run.folder.name,
        "relation": relation,
        "p_value": p_value,
        "sentence": sentence,
        "confirmed": p_value < CERTAIN and relation != "independent" and same,
    }
    return lineage, roles


def _measure(run: Run, base: Checkpoint, judged: dict[str, Any], *, frozen: bool) -> dict[str, Any]:
    """The difference by role; if the base is the one it was, ``frozen`` tensors must be as they were."""
    with open_checkpoint(run.result) as result:
        if run.config.peft.kind == "full":
            pairs = [(pair["b"], pair["a"]) for pair in judged["tensors"]]
            return full_difference(base, result, pairs)
        adapted = {module_name(name) for name in result.tensors}
        moved = [p["b"] for p in judged["tensors"] if not p["identical"] and p["b"] not in adapted]
        if moved and frozen:
            raise VerificationError(f"{moved[0]} was frozen and has changed", hint="please report this")
        return low_rank_difference(base, result)


def write_card(run: Run) -> None:
    """Write the model card beside the weights, and under ``card/``; it says only what was measured."""
    publish, data = run.config.publish, run.facts["data"]
    author = {"license": publish.license, "language": publish.language, "tags": (*publish.tags, run.method)}
    training = {
        "trained values": f"{run.facts['trainable']:,}",
        "learning rate": run.config.learning_rate,
        "data": f"sha256:{data['rows_sha256']}" if data["rows_sha256"] else "a stream",
        "versions": ", ".join(f"{name} {version}" for name, version in run.facts["versions"].items()),
        "metrics": ", ".join(
            f"{name} {value['last']:.4g}" for name, value in run.facts["metrics"].items() if name in SHOWN
        ),
    }
    card = create_model_card(run.folder, publish.repo or run.folder.name, training_info=training, **author)
    for place in (run.folder / "card" / "README.md", run.result / "README.md"):
        write_file(place, card.encode())


def catalogue(run: Run, store: Store) -> None:
    """Remember the base and the result by their fingerprints.

    Raises:
        UsageError: The store refuses one.
    """
    found = store.index([run.config.model.address])
    failed = found["failed"]
    if run.config.peft.kind not in {"prefix", "prompt"}:
        taken = any(row["name"] == run.folder.name for row in store.catalog.models())
        failed += store.index([merged(run)], name=None if taken else run.folder.name)["failed"]
    if failed:
        raise UsageError(failed[0]["message"], hint=failed[0]["hint"])
