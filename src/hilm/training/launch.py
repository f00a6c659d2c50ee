"""``fit``: check, train in this process or several, and finish with the evidence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm import errors
from hilm.data import load_data, rows_sha256, source_digests
from hilm.errors import InputError, TrainingError, UsageError
from hilm.store.reading import no_progress
from hilm.training.config import FitConfig, to_document
from hilm.training.preflight import check, preflight
from hilm.training.provenance import finish
from hilm.training.record import Run, weights_key
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from hilm.store import Store
    from hilm.store.reading import Progress
    from hilm.training.preflight import Finding

ORIGIN = ("method", "base", "data", "config")
"""What has to be the same where a run goes on."""

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "trl", "bitsandbytes", "hilm")


def fit(
    method: str,
    config: FitConfig,
    *,
    resume: bool = False,
    dry_run: bool = False,
    force: bool = False,
    store: Store | None = None,
    progress: Progress = no_progress,
    tell: Callable[[Finding], None] = lambda _: None,
) -> dict[str, Any]:
    """Train a model, and leave the evidence of where it comes from.

    Args:
        method: sft, dpo, reward, kto, grpo, rloo, ppo, classify or pretrain.
        config: What to train, on what and how; ``config.out`` is the folder of the run.
        resume: Go on from the newest whole checkpoint.
        dry_run: Check and plan, and stop there.
        force: Train although the memory does not suffice, or the run resumed was another.
        store: Where model and base are catalogued; the default store when None.
        progress: Called with steps done, steps in all, and what is at work.
        tell: Called with every finding that is no error.

    Returns:
        ``output`` (folder of the result), ``metrics``, ``parent``, ``relation``, ``p_value``, ``confirmed``;
        of a dry run ``findings`` and ``plan``.

    Raises:
        UsageError: A key, method or setting that cannot be.
        InputError: Model or data do not fit the method; a finding of the checks before.
        VerificationError: The weights do not confirm the parent.
        TrainingError: The loss is no number, or a process died.
        Cancelled: Interrupted; a checkpoint was saved.
    """
    checked = preflight(method, config)
    config = checked.config
    if dry_run:
        return {"findings": [asdict(finding) for finding in checked.findings], "plan": checked.plan}
    check(checked.findings, force=force, tell=tell)
    run = Run(Path(config.out))
    begun = (run.folder / "run.json").exists()
    if begun and not resume:
        raise UsageError(
            f"{run.folder} holds a run already", hint="--resume goes on with it; out=… starts another"
        )
    facts = _origin(method, config)
    if resume and begun:
        run = Run.open(run.folder)
        _compare_origin(run, method, config, facts, force=force)
    run.start(method, config, facts)
    _train(run, config, resume=resume, progress=progress)
    return finish(run.folder, store=store)


def _origin(method: str, config: FitConfig) -> dict[str, Any]:
    """Digests of what a run starts from, and versions of what it runs with."""
    with open_checkpoint(config.model.address) as base:
        facts = {"id": config.model.id, "revision": config.model.revision, "weights": weights_key(base)}
    rows = None if config.data.streaming else rows_sha256(load_data(config.data))
    return {
        "base": facts,
        "data": {"sources": source_digests(config.data), "rows_sha256": rows},
        "versions": {d.name: d.version for d in metadata.distributions() if d.name in LIBRARIES},
        "command": f"hilm fit {method} config.yaml",
        "peft": config.peft.kind,
        "precision": config.train.precision,
        "seed": config.train.seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _compare_origin(run: Run, method: str, config: FitConfig, facts: dict[str, Any], *, force: bool) -> None:
    """Refuse to go on with other settings, rows or weights than the run began with."""
    begun = run.facts | {"config": to_document(run.config)}
    asked = facts | {"method": method, "config": to_document(config)}
    before, now = (_flatten({key: all_[key] for key in ORIGIN}) for all_ in (begun, asked))
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing and not force:
        raise InputError(
            f"[E-RESUME] {run.folder} was begun with other {', '.join(differing)}",
            hint="use the settings of its config.yaml, or --force",
        )


def _flatten(document: Any, place: str = "") -> dict[str, Any]:  # noqa: ANN401 - JSON
    if not isinstance(document, dict):
        return {place: document}
    return {
        k: v
        for key, item in document.items()
        for k, v in _flatten(item, f"{place}.{key}".lstrip(".")).items()
    }


def _train(run: Run, config: FitConfig, *, resume: bool, progress: Progress) -> None:
    """Train here, or in processes that torchrun starts."""
    count = config.launch.nproc
    if count == 1:
        from hilm.training.worker import train  # noqa: PLC0415 - torch is imported when it is used

        train(run, resume=resume, progress=progress)
        return
    (run.folder / "error.json").unlink(missing_ok=True)
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    words += ["-m", "hilm.training.worker", str(run.folder), *(["--resume"] if resume else [])]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    environment = os.environ | {"HILM_WORLD": str(count), "OMP_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, *words], env=environment, stdout=sys.stderr, check=False)  # noqa: S603 - ours
    run.facts = Run.open(run.folder).facts
    if (run.folder / "error.json").exists():
        told = json.loads((run.folder / "error.json").read_text())
        kind = getattr(errors, told["kind"], TrainingError)
        raise kind(told["message"], hint=told["hint"])
    if done.returncode:
        raise TrainingError(
            f"a process ended with {done.returncode}", hint="what it printed is above; --resume goes on"
        )
