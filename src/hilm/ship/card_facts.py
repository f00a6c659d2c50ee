"""What a model folder tells: headers, configuration, run manifest, reports, and the author's own card."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, NotACheckpoint
from hilm.ship import front_matter
from hilm.ship.identifiers import ADAPTER_TASKS, HEADS
from hilm.ship.model_card import CardFacts, Check, Metric, build
from hilm.ship.references import is_repository
from hilm.store import inspect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike

MAX_JSON = 16 << 20


def create_model_card(
    model_path: str | PathLike[str],
    repo_id: str,
    *,
    training_info: Mapping[str, object] | None = None,
    **author: Any,  # noqa: ANN401 - fields of CardFacts
) -> str:
    """Write the card of a model folder from what the folder shows.

    Args:
        model_path: Folder of a model, an adapter, or a run of ``hilm fit``.
        repo_id: ``owner/name`` it will have.
        training_info: Name → value, for the section on training.
        author: Further fields of :class:`~hilm.ship.CardFacts`, such as ``license`` and ``limitations``.

    Raises:
        InputError: Its weights or its JSON files cannot be read.
    """
    facts = gather(model_path, repo_id, **author)
    return build(replace(facts, training={**facts.training, **(training_info or {})}))


def gather(folder: str | PathLike[str], repo_id: str, **author: Any) -> CardFacts:  # noqa: ANN401 - as above
    """Collect the facts of a folder; what the author says in ``author`` or in its README.md comes first.

    Raises:
        InputError: Its weights or its JSON files cannot be read.
    """
    root = Path(folder)
    home = next(
        (root / n for n in ("model", "adapter") if (root / "run.json").is_file() and (root / n).is_dir()),
        root,
    )
    known: dict[str, Any] = {}
    for source in (_weights(home), _config(home), _adapter(home), _run(root, home), _card(home), author):
        known |= {key: value for key, value in source.items() if value not in (None, "", (), {})}
    known["checks"] = (*known.get("checks", ()), *_checks(root))
    if known.get("base_model") and not known.get("relation"):
        known["relation"] = "merge" if len(known["base_model"]) > 1 else "finetune"
    return CardFacts(repo_id, **known)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        InputError: The file is something else.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_JSON:
        raise InputError(f"{path.name} has more than {MAX_JSON >> 20} MiB")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise InputError(f"{path.name} is not JSON") from None
    if not isinstance(document, dict):
        raise InputError(f"{path.name} is not a JSON object")
    return document


def _weights(folder: Path) -> dict[str, Any]:
    try:
        found = inspect(folder)
    except NotACheckpoint:
        return {}
    return {
        "roles": found["roles"],
        "dtypes": tuple(sorted({tensor["dtype"] for tensor in found["tensors"]})),
    }


def _config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    architecture = str(next(iter(config.get("architectures") or []), ""))
    task = next((tasks[0] for head, tasks in HEADS.items() if architecture.endswith(head)), "")
    library = "transformers" if architecture else ""
    return {
        "architecture": architecture,
        "task": task,
        "library": library,
        "remote_code": "auto_map" in config,
    }


def _adapter(folder: Path) -> dict[str, Any]:
    adapter = read_json(folder / "adapter_config.json")
    if not adapter:
        return {}
    base = adapter.get("base_model_name_or_path")
    named = {"base_model": (base,)} if is_repository(base) else {}
    return named | {
        "library": "peft",
        "relation": "adapter" if named else "",
        "task": ADAPTER_TASKS.get(str(adapter.get("task_type")), ""),
    }


def _run(root: Path, home: Path) -> dict[str, Any]:
    """What the manifest of a run of ``hilm fit`` says."""
    path = next((f / "run.json" for f in (root, home, home.parent) if (f / "run.json").is_file()), None)
    if path is None:
        return {}
    run = read_json(path)
    keys = (
        "method",
        "peft",
        "precision",
        "seed",
        "world_size",
        "steps",
        "tokens",
        "data",
        "versions",
        "metrics",
    )
    training = {key: run[key] for key in keys if run.get(key) not in (None, "", {}, [])}
    base = run.get("base") or {}
    named = {"base_model": (base["id"],)} if isinstance(base, dict) and is_repository(base.get("id")) else {}
    command = run.get("command", "")
    return named | {
        "training": training,
        "command": " ".join(command) if isinstance(command, list) else str(command),
        "run": digest(path),
    }


def _card(folder: Path) -> dict[str, Any]:
    """What the author's own card says, as far as it can be read."""
    path = folder / "README.md"
    try:
        front = front_matter.split(path.read_text("utf-8"))[0] if path.is_file() else {}
    except (InputError, UnicodeDecodeError):
        return {}  # what is built replaces it
    base = front.get("base_model")
    named: dict[str, Any] = {
        "base_model": tuple(base) if isinstance(base, list) else (base,) if base else (),
        "relation": front.get("base_model_relation"),
        "library": front.get("library_name"),
        "task": front.get("pipeline_tag"),
        "metrics": tuple(_metrics(front.get("model-index"))),
    }
    for key in ("language", "datasets", "tags"):
        value = front.get(key) or ()
        named[key] = (value,) if isinstance(value, str) else tuple(map(str, value))
    return named | {key: front.get(key) for key in ("license", "license_name", "license_link")}


def _metrics(index: Any) -> Iterator[Metric]:  # noqa: ANN401 - parsed YAML
    for model in index or ():
        for result in model.get("results", ()):
            for metric in result.get("metrics", ()):
                source = str((result.get("source") or {}).get("name", ""))
                yield Metric(
                    task=result["task"]["type"],
                    dataset=result["dataset"]["type"],
                    type=metric["type"],
                    value=metric["value"],
                    source=source if source.startswith("sha256:") else "",
                )


def _checks(root: Path) -> Iterator[Check]:
    """Verdicts of the reports beside the weights, in the order of their names."""
    for path in sorted({*root.glob("report/*.json"), *root.glob("report.json")}):
        report = read_json(path)
        for name, part in {path.stem: report, **(report.get("exports") or {})}.items():
            verdict = (
                part.get("verdict")
                or part.get("relation")
                or {True: "pass", False: "fail"}.get(part.get("ok"))
            )
            value = next((part[k] for k in ("max_abs_error", "max_abs", "p_value") if k in part), None)
            if isinstance(verdict, str) and isinstance(value, int | float) and math.isfinite(value):
                yield Check(f"{name} ({digest(path)[:19]})", value, part.get("tolerance"), verdict)


def digest(path: Path) -> str:
    """``sha256:`` and the digest of a small file."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
