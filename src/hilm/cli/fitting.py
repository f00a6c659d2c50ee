"""``hilm fit``, ``hilm finish`` and ``hilm merge``: training with its lineage attached."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hilm.cli import options, output
from hilm.cli.output import ABSENT, chance, clean, count, facts, figure, size
from hilm.errors import UsageError

if TYPE_CHECKING:
    from hilm.cli.output import Document
    from hilm.training.preflight import Finding

METHODS = ("sft", "dpo", "reward", "kto", "grpo", "rloo", "ppo", "classify", "pretrain")


@click.command(
    cls=options.Command,
    examples=(
        "hilm fit sft config.yaml train.steps=100 peft.kind=lora",
        "hilm fit dpo config.yaml --dry-run",
        "hilm fit sft config.yaml --nproc 2 --json",
        "hilm fit sft config.yaml --resume",
    ),
)
@click.argument("method", metavar="METHOD", type=click.Choice(METHODS))
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--nproc", type=click.IntRange(min=1), metavar="N", help="Processes. [default: launch.nproc]")
@click.option("--resume", is_flag=True, help="Go on from the newest whole checkpoint.")
@click.option("--dry-run", is_flag=True, help="Check and plan, and stop there.")
@click.option("--force", is_flag=True, help="Train although memory does not suffice, or settings changed.")
@options.storage_dir
@options.switches
def fit(
    method: str,
    config: Path,
    overrides: tuple[str, ...],
    *,
    nproc: int | None,
    resume: bool,
    dry_run: bool,
    force: bool,
    storage_dir: Path | None,
) -> None:
    """Train a model as CONFIG says: sft, dpo, reward, kto, grpo, rloo, ppo, classify or pretrain.

    CONFIG is YAML, JSON or TOML; KEY=VALUE changes it, as in train.learning_rate=1e-4. What would go wrong
    silently is found before the first step. At the end the result's parent is checked against the weights:
    exit 3 if they do not confirm it.
    """
    from hilm.store import Store  # noqa: PLC0415 only a run pays for it
    from hilm.training.config import load_config  # noqa: PLC0415 the same
    from hilm.training.launch import fit as start  # noqa: PLC0415 the same

    asked = load_config(config, overrides)
    if nproc is not None:
        asked = dataclasses.replace(asked, launch=dataclasses.replace(asked.launch, nproc=nproc))
    _quieten()
    with output.progress() as progress:
        document = start(
            method,
            asked,
            resume=resume,
            dry_run=dry_run,
            force=force,
            store=Store(storage_dir),
            progress=progress,
            tell=_tell,
        )
    output.emit(document, planned if dry_run else finished)
    if any(found["severity"] == "error" for found in document.get("findings", ())):
        click.get_current_context().exit(UsageError.exit_code)


def _tell(finding: Finding) -> None:
    """Say what was found, on stderr."""
    label, color = ("note", "cyan") if finding.severity == "note" else ("warning", "yellow")
    hint = f" ({finding.hint})" if finding.hint else ""
    output.note(f"[{finding.id}] {finding.message}{hint}", label=label, color=color)


def _quieten() -> None:
    """Keep the libraries' own bars and reports off the screen."""
    import logging  # noqa: PLC0415 only a run pays for it
    import warnings  # noqa: PLC0415 the same

    from hilm.extras import require  # noqa: PLC0415 the same

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for kernels that no run here needs
    warnings.filterwarnings(
        "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
    )  # peft's use
    require("datasets").disable_progress_bars()
    theirs = require("transformers.utils.logging")
    theirs.disable_progress_bar()
    theirs.set_verbosity_error()


@click.command(cls=options.Command, examples=("hilm finish runs/support", "hilm finish runs/support --json"))
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@options.storage_dir
@options.switches
def finish(run: Path, *, storage_dir: Path | None) -> None:
    """Write the reports and the card of RUN again, and check its parent; a second time changes nothing."""
    from hilm.store import Store  # noqa: PLC0415 only a run pays for it
    from hilm.training.provenance import finish as work  # noqa: PLC0415 the same

    _quieten()
    output.emit(work(run, store=Store(storage_dir)), finished)


@click.command(
    cls=options.Command,
    examples=("hilm merge runs/support/adapter merged", "hilm merge adapter merged --base ./llama"),
)
@click.argument("adapter", metavar="ADAPTER", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@options.base("The model it was trained on. [default: the one it names]")
@options.switches
def merge(adapter: Path, out: Path, *, base: str | None) -> None:
    """Merge a LoRA into its base, in float32, and write the model to OUT; a quantised base is refused."""
    from hilm.training.merging import merge as work  # noqa: PLC0415 only merging pays for it

    _quieten()
    output.emit(work(adapter, out, base=base), merged)


def finished(document: Document) -> str:
    """Write where the result is, how training went, and what its weights say of its parent."""
    loss = document["metrics"].get("loss", {})
    parity = ", ".join(
        f"{name} {figure(value)}"
        for name, value in document["parity"].items()
        if name not in {"ok", "tolerance", "max_abs"}
    )
    return facts(
        {
            "output": clean(document["output"]),
            "loss": f"{figure(loss.get('first'))} to {figure(loss.get('last'))}" if loss else ABSENT,
            "parent": f"{clean(document['parent'])}: {document['relation']}, p {chance(document['p_value'])}",
            "largest differences": parity,
        }
    )


def merged(document: Document) -> str:
    """Write what was merged into what."""
    return facts(
        {
            "model": clean(document["out"]),
            "base": clean(document["base"]),
            "adapter": clean(document["adapter"]),
            "parameters": count(document["parameters"]),
        }
    )


def planned(document: Document) -> str:
    """Write the findings, and the memory it would take."""
    lines = [
        f"{found['severity']:8}{found['id']}: {clean(found['message'])}"
        + (f" ({clean(found['hint'])})" if found["hint"] else "")
        for found in document["findings"]
    ]
    plan = document["plan"]
    if plan:
        memory = {"trains": count(plan["row"]["trainable"]), "~memory": size(plan["total"])}
        lines.append(facts(memory | {"free": size(plan["available"])}))
    return "\n".join(lines)
