"""``hilm encode``, ``hilm decode`` and ``hilm verify``: checkpoints to reels, and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import hilm
from hilm.cli import options, output
from hilm.cli.output import clean, count, facts, figure, seconds, size, table
from hilm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hilm.cli.output import Document


POPULAR = (
    "google-bert/bert-base-uncased",
    "openai-community/gpt2",
    "FacebookAI/roberta-base",
    "distilbert/distilbert-base-uncased",
)
"""The models on the Hub that the guides are about."""

FEW_BITS = 3


@click.command(
    cls=options.Command,
    examples=(
        "hilm encode ./all-MiniLM-L6-v2",
        "hilm encode ./all-MiniLM-L6-v2 --mode small --bits 4",
        "hilm encode ./bert-base ./roberta-base --max-params 30000",
        "hilm encode --models ./bert-base ./roberta-base --storage-dir experiment_1",
        "hilm encode ./my-bert --mode delta --base ./bert-base",
        "hilm encode ./bert-base --carrier ffv1",
        "hilm encode ./gpt2 --stream --layers attention mlp --chunk-size 8000 --max-params 35000",
    ),
)
@click.argument("models", nargs=-1, metavar="MODEL…")
@click.option(
    "--models", "--model", "more_models", cls=options.Several, metavar="MODEL…", help="More models."
)
@click.option(
    "--mode",
    type=click.Choice(["archive", "small", "delta", "sample"]),
    help="archive keeps every bit; small rounds weights to 2 to 8 bits; delta keeps what a base lacks; "
    "sample films some parameters. "
    "[default: sample with --max-params or --stream, else archive]",
)
@options.base("What a delta is taken from: a checkpoint, a reel, or a model in the store.")
@options.selection
@click.option("--stream", is_flag=True, help="A film of chunks, one frame each.")
@options.rounding
@options.carriers
@click.option("--lossy", is_flag=True, help="Round the differences of a delta, to 2.5 bits or --bits.")
@click.option("--name", help="The model's name in the store. [default: the folder's]")
@click.option("--no-preview", is_flag=True, help="Leave out the pictures a video player shows.")
@click.option("--force", is_flag=True, help="Film again what is already in the store.")
@click.option("--download-popular", is_flag=True, hidden=True)
@options.revision
@options.jobs
@options.storage_dir
@options.switches
def encode(
    models: tuple[str, ...],
    more_models: tuple[str, ...],
    *,
    mode: str | None,
    base: str | None,
    max_params: int | None,
    stream: bool,
    chunk_size: int | None,
    layers: tuple[str, ...],
    exclude_layers: tuple[str, ...],
    name: str | None,
    no_preview: bool,
    carrier: str,
    layout: str,
    force: bool,
    download_popular: bool,
    revision: str | None,
    jobs: int | None,
    lossy: bool,
    ray: str | None,
    storage_dir: Path | None,
    **rounding: Any,  # noqa: ANN401 - of options.rounding
) -> None:
    """Film checkpoints: one reel each, a video file that holds the weights and can prove it.

    Every model filmed is remembered in the store, where hilm search finds it.
    """
    popular = POPULAR if download_popular else ()
    named = [options.at_revision(model, revision) for model in (*models, *more_models)]
    if not (named or popular):
        raise UsageError("no model to encode", hint="name folders or files: hilm encode ./bert-base ./gpt2")
    mode = mode or ("delta" if base else "sample" if max_params or stream else "archive")
    if carrier != "packed":
        for model in named:
            _quote(hilm.Store(storage_dir).quote(model, carrier, mode=mode, **rounding))
    with output.progress() as progress:
        document = hilm.Store(storage_dir).encode(
            [*named, *popular],
            mode=mode,
            base=base,
            lossy=lossy,
            max_params=max_params,
            stream=stream,
            chunk_size=chunk_size,
            layers=layers or None,
            exclude_layers=exclude_layers or None,
            name=name,
            preview=not no_preview,
            carrier=carrier,
            layout=layout,
            jobs=jobs,
            ray=ray,
            force=force,
            progress=progress,
            **rounding,
        )
    output.settle(document, "models")
    for reel in document["models"]:
        if reel["mode"] == "small" and reel["bits_per_weight"] < FEW_BITS:
            text = f"{reel['model']}: below {FEW_BITS} bits per weight its outputs change visibly"
            output.note(f"{text} (cosine below .95 is likely)", label="warning", color="yellow")
        for text in (*_delta_notes(reel), *_layout_notes(reel)):
            output.note(f"{reel['model']}: {text}")
    output.emit(document, encoded)


def _delta_notes(reel: Document) -> Iterator[str]:
    """Say what the table of a delta leaves out."""
    if reel.get("unpaired"):
        yield f"not in the base, archived: {', '.join(map(clean, reel['unpaired']))}"
    if reel.get("energy_lost"):
        yield f"rounding lost {reel['energy_lost']:.2%} of the energy of the difference"


def _quote(price: Document) -> None:
    """Say what a video costs before it is written."""
    text = "has nothing that a video carries"
    if price["tensor"] is not None:
        more = price["carried"] / price["packed"] - 1
        text = (
            f"costs {figure(price['carried'])} bits per weight where packed costs {figure(price['packed'])}"
        )
        text += f" ({more:+.1%}, measured on {clean(price['tensor'])})"
    output.note(f"{clean(price['model'])}: {price['carrier']} {text}")


def _layout_notes(reel: Document) -> Iterator[str]:
    """Say how the weights lie in the frames of a video."""
    for layout in ("raster", "flat", "hilbert"):
        gains = [gain for chosen, gain in reel.get("layouts", {}).values() if chosen == layout]
        if gains:
            saved = f", saving up to {max(gains):.1f} %" if any(gains) else ""
            yield f"tensors in {layout} layout: {len(gains)}{saved}"


def encoded(document: Document) -> str:
    """Write one line a reel: what it holds and what it cost."""
    reels = document["models"]
    return "\n".join(
        [
            table(
                ["model", "mode", ">parameters", ">size", ">bits/weight", ">NMSE", ">time"],
                [
                    [
                        clean(reel["model"]),
                        reel["mode"],
                        count(reel["parameters"]),
                        size(reel["bytes"]),
                        figure(reel["bits_per_weight"]),
                        figure(reel["nmse"]),
                        seconds(reel["seconds"]),
                    ]
                    for reel in reels
                ],
            ),
            "",
            *dict.fromkeys(clean(str(reel["reel"])) for reel in reels),
        ]
    )


@click.command(
    cls=options.Command,
    examples=(
        "hilm decode bert-base ./restored",
        "hilm decode bert-base.reel.mp4 ./restored --tensor embeddings.word_embeddings.weight",
    ),
)
@click.argument("reel")
@click.argument("out_dir", type=click.Path(path_type=Path, file_okay=False))
@click.option("--tensor", metavar="NAME", help="Only this tensor; nothing else of the reel is read.")
@options.base("What a delta was taken from. [default: what the store has]")
@options.storage_dir
@options.switches
@click.pass_context
def decode(
    context: click.Context,
    reel: str,
    out_dir: Path,
    *,
    tensor: str | None,
    base: str | None,
    storage_dir: Path | None,
) -> None:
    """Write a reel's weights back as safetensors.

    REEL is a file, or the name of a model in the store. Ends with exit code 3 if the weights are not the ones
    that were filmed.
    """
    path = find_reel(reel, storage_dir, "archive", "delta", "small")
    document = hilm.decode(path, out_dir, tensor=tensor, base=base, store=find_store(storage_dir))
    output.emit(document, decoded)
    if document["sha256_ok"] is False:
        context.exit(3)


def decoded(document: Document) -> str:
    """Write where the weights went, and whether they are the ones that were filmed."""
    proof = {
        True: "same bits as filmed (SHA-256)",
        False: "NOT the bits that were filmed",
        None: output.ABSENT,
    }
    return facts(
        {
            "written to": clean(str(document["out"])),
            "tensors": count(amount(document["tensors"])),
            "proof": proof[document["sha256_ok"]],
            **({"weights": f"rounded, NMSE {figure(document['nmse'])}"} if document.get("nmse") else {}),
        }
    )


def row_range(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read ``a:b``, the first row and the last plus one.

    Raises:
        BadParameter: It is something else.
    """
    match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", value or "")
    if value is not None and not match:
        raise click.BadParameter(f"{value!r} is not A:B, such as 0:4", param=parameter)
    return (int(match[1]), int(match[2])) if match else None


@click.command(
    cls=options.Command,
    examples=(
        "hilm get bert-base embeddings.word_embeddings.weight --rows 0:4",
        "hilm get https://example.org/bert-base.reel.mp4 pooler.dense.weight -o pooler.npy",
    ),
)
@click.argument("reel")
@click.argument("tensor", metavar="NAME")
@click.option("--rows", callback=row_range, metavar="A:B", help="Only rows A to B - 1 along the first axis.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write it as .npy or .safetensors.",
)  # fmt: skip
@options.base("What a delta was taken from. [default: what the store has]")
@options.storage_dir
@options.switches
def get(
    reel: str,
    tensor: str,
    *,
    rows: tuple[int, int] | None,
    out: Path | None,
    base: str | None,
    storage_dir: Path | None,
) -> None:
    """Fetch one tensor of a reel, or a few rows of it, and nothing else.

    REEL is a file, a URL, or the name of a model in the store. Of a URL, the end of the file and the tensor
    are fetched, by ranges.
    """
    path = find_reel(reel, storage_dir, "archive", "delta", "small")
    document = hilm.get(path, tensor, rows=rows, out=out, base=base, store=find_store(storage_dir))
    output.emit(document, fetched)


def fetched(document: Document) -> str:
    """Write what was read, and what that cost of a remote reel."""
    rows = document["rows"]
    told = {
        "tensor": f"{clean(document['tensor'])}{f', rows {rows[0]}:{rows[1]}' if rows else ''}",
        "stored as": f"{document['dtype']} {' x '.join(map(str, document['shape'])) or 'scalar'}",
        "begins": ", ".join(map(figure, document["first"])) or output.ABSENT,
        **{key: figure(document[key]) for key in ("mean", "std", "min", "max")},
    }
    if document["out"]:
        told["written to"] = clean(document["out"])
    if document["requests"] is not None:
        told["fetched"] = f"{document['requests']} requests, {size(document['fetched'])}"
    return facts(told)


@click.command(
    cls=options.Command,
    examples=("hilm verify bert-base", "hilm verify bert-base.reel.mp4 --against ./bert-base --json"),
)
@click.argument("reel")
@click.option("--against", metavar="MODEL", help="Compare with the checkpoint too, value by value.")
@options.base("What a delta was taken from. [default: what the store has]")
@options.storage_dir
@options.switches
@click.pass_context
def verify(
    context: click.Context, reel: str, *, against: str | None, base: str | None, storage_dir: Path | None
) -> None:
    """Prove that a reel holds what was filmed: every checksum, and with --against every value.

    REEL is a file, or the name of a model in the store. Ends with exit code 3 if it does not.
    """
    path = find_reel(reel, storage_dir)
    with output.progress() as progress:
        document = hilm.verify(
            path, against=against, base=base, store=find_store(storage_dir), progress=progress
        )
    output.emit(document, verified)
    if not document["ok"]:
        context.exit(3)


def verified(document: Document) -> str:
    """Write the verdict, then everything that is wrong."""
    bad = document["bad"]
    checked = count(amount(document["checked"]))
    verdict = (
        output.paint("ok", fg="green", bold=True)
        if document["ok"]
        else output.paint("BAD", fg="red", bold=True)
    )
    lines = [f"{verdict}: {checked} checked, {len(bad):,} bad"]
    if document["max_abs"] is not None:
        lines.append(f"largest difference {figure(document['max_abs'])}, NMSE {figure(document['nmse'])}")
    return "\n".join([*lines, *(f"  {clean(str(item))}" for item in bad)])


def amount(things: int | list[object]) -> int:
    """Return a number of things, given as the number or as the things."""
    return things if isinstance(things, int) else len(things)


def find_store(storage_dir: Path | None) -> hilm.Store | None:
    """Return the store to look for bases in; None, which opens no store in vain, is the default one."""
    return None if storage_dir is None else hilm.Store(storage_dir)


def find_reel(reel: str, storage_dir: Path | None, *modes: str) -> str | Path:
    """Return the file REEL means: a path, a URL, or the name of a model in the store that has a reel."""
    if "://" in reel:
        return reel
    return Path(reel) if Path(reel).is_file() else hilm.Store(storage_dir).reel(reel, *modes)
