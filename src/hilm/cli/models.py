"""``hilm model new``: a fresh ResNet-BK, ready for transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import psutil

from hilm.cli import options, output
from hilm.cli.output import clean, count, facts
from hilm.errors import MemoryLimitError, UsageError
from hilm.extras import require

if TYPE_CHECKING:
    from hilm.cli.output import Document

SIZES = ("1M", "10M", "100M", "1B", "10B")
BYTES = 259
"""Tokens of the tokenizer that a fresh model has: every byte, and three special ones."""


@click.command(
    cls=options.Command, examples=("hilm model new --size 1M ./tiny", "hilm model new ./tiny --json")
)
@click.argument("action", metavar="new", type=click.Choice(("new",)))
@click.option(
    "--size",
    type=click.Choice(SIZES, case_sensitive=False),
    default="1M",
    metavar="SIZE",
    help=f"{', '.join(SIZES)}. [default: 1M]",
)
@click.argument("out", type=click.Path(path_type=Path))
@options.switches
def model(action: str, out: Path, *, size: str) -> None:
    """Write a randomly initialised ResNet-BK language model, and a tokenizer of bytes, to the new folder OUT.

    The folder carries its code: AutoModelForCausalLM.from_pretrained(OUT, trust_remote_code=True) loads it.
    """
    del action
    if out.exists():
        raise UsageError(f"{out} exists", hint="name a new folder")
    resnet_bk, logging = require("hilm.models.resnet_bk"), require("transformers.utils.logging")
    counted = resnet_bk.describe(resnet_bk.create_resnet_bk_for_hf(size, device="meta").config)
    needed, free = 4 * counted.parameters, psutil.virtual_memory().available
    if needed > free:
        raise MemoryLimitError(
            f"ResNet-BK {size} takes {output.size(needed)} of memory, {output.size(free)} are free",
            hint="choose a smaller size",
        )
    logging.disable_progress_bar()
    part = out.with_name(f"{out.name}.part")
    resnet_bk.save_with_code(resnet_bk.create_resnet_bk_for_hf(size), part)
    require("hilm.models.resnet_bk.tokenizer").train_tokenizer([], BYTES).save_pretrained(part)
    part.rename(out)
    document = {
        "label": counted.label,
        "parameters": counted.parameters,
        "active_parameters": counted.active_parameters,
        "path": str(out),
    }
    output.emit(document, described)


def described(document: Document) -> str:
    """Write the label with the counts it stands for."""
    return facts(
        {
            "label": document["label"],
            "parameters": count(document["parameters"]),
            "active per token": count(document["active_parameters"]),
            "path": clean(document["path"]),
        }
    )
