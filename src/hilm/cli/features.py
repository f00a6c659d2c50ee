"""``hilm features extract`` and ``hilm features verify``: is the packed model the padded one?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilm.cli import inputs, options, output
from hilm.cli.output import clean, facts

if TYPE_CHECKING:
    from hilm.cli.output import Document


@click.group(
    cls=options.Group,
    examples=(
        "hilm features extract --hf_model_path ./padded --packing_model_path convert --image1 1.jpg",
        "hilm features verify --features_dir ./features",
    ),
)
def features() -> None:
    """Hidden states of a padded and a packed model of the same inputs, and their comparison."""


@features.command(
    cls=options.Command,
    examples=(
        "hilm features extract --hf_model_path ./padded --packing_model_path ./packed --image1 1.jpg",
        "hilm features extract --hf_model_path ./padded --packing_model_path convert --input cat=cat.jpg",
    ),
)
@click.option("--hf-model-path", required=True, metavar="MODEL", help="Padded model.")
@click.option(
    "--packing-model-path",
    required=True,
    metavar="MODEL",
    help="Packed model; 'convert' makes it of the other.",
)
@click.option("--image1", metavar="PATH", help="A picture.")
@click.option("--image2", metavar="PATH", help="A picture.")
@click.option("--video1", metavar="PATH", help="A clip.")
@click.option("--video2", metavar="PATH", help="A clip.")
@click.option("--input", "more", multiple=True, metavar="NAME=PATH", help="Any further input; repeatable.")
@click.option(
    "--output-dir", type=click.Path(path_type=Path), default="./features", show_default=True, metavar="DIR"
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Number format of both models.",
)
@click.option(
    "--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps."
)
@click.option(
    "--attn",
    type=click.Choice(["auto", "sdpa", "eager", "flash"]),
    default="auto",
    help="How attention is computed.",
)
@click.option("--layer", type=int, default=-2, show_default=True, metavar="N", help="Which hidden state.")
@click.option("--floor", is_flag=True, help="Also measure the padded model against itself in float32.")
@inputs.MEMORY
@click.option("--overwrite", is_flag=True, help="Replace earlier results.")
@inputs.reading
@options.switches
def extract(
    *,
    image1: str | None,
    image2: str | None,
    video1: str | None,
    video2: str | None,
    more: tuple[str, ...],
    **rest: Any,  # noqa: ANN401
) -> None:
    """Write a hidden state of both models for every input: two npz files and metadata.json."""
    from hilm.parity.extraction import extract_features  # noqa: PLC0415 only this command pays for it
    from hilm.parity.inputs import parse_inputs  # noqa: PLC0415

    named = {"image1": image1, "image2": image2, "video1": video1, "video2": video2}
    given = [f"{name}={name[:5]}:{path}" for name, path in named.items() if path is not None]
    parsed = parse_inputs([*given, *more])
    document = extract_features(
        rest["hf_model_path"],
        rest["packing_model_path"],
        parsed,
        rest["output_dir"],
        dtype=rest["dtype"],
        device=rest["device"],
        attention="sdpa" if rest["attn"] == "auto" else rest["attn"],
        layer=rest["layer"],
        floor=rest["floor"],
        memory_limit_mb=rest["memory_limit"],
        overwrite=rest["overwrite"],
        reading=inputs.make_reading(rest),
    )
    for name, found in document["inputs"].items():
        for warning in found.get("warnings", []):
            output.note(f"{name}: {warning}", label="warning", color="yellow")
    if not document["models"]["same_weights"]:
        output.note("the models do not have the same weights", label="warning", color="yellow")
    output.emit(document, lambda found: extracted(found, rest["output_dir"]))


def extracted(document: Document, folder: Path) -> str:
    """Write what was made."""
    shapes = document["features"]
    lines = [
        facts({"written to": clean(str(folder)), "device": document["device"], "dtype": document["dtype"]})
    ]
    lines += [f"{name}: HF {shapes['hf'][name]}, packing {shapes['packing'][name]}" for name in shapes["hf"]]
    return "\n".join([*lines, "", f"hilm features verify --features_dir {clean(str(folder))}"])


@features.command(cls=options.Command, examples=("hilm features verify --features_dir ./features",))
@click.option(
    "--features-dir", type=click.Path(path_type=str), default="./features", show_default=True, metavar="DIR"
)
@click.option(
    "--threshold", type=float, default=0.99, show_default=True, help="Cosine every token must exceed."
)
@click.option(
    "--norm-tolerance", type=float, default=0.1, show_default=True, help="Of the ratio of norms to 1."
)
@click.option("--details", is_flag=True, help="Compare with the precision floor too.")
@inputs.reports
@options.switches
@click.pass_context
def verify(
    context: click.Context,
    *,
    features_dir: str,
    threshold: float,
    norm_tolerance: float,
    details: bool,
    junit: Path | None,
    html: Path | None,
) -> None:
    """Compare the features of both models; ends with exit code 3 if they do not match."""
    from hilm.parity import report  # noqa: PLC0415 only this command pays for it
    from hilm.parity.features import verify_features  # noqa: PLC0415

    found = verify_features(features_dir, threshold=threshold, norm_tolerance=norm_tolerance)
    inputs.write_report(junit, report.junit, found)
    inputs.write_report(html, report.features_page, found)
    text = "\n".join([found.text(), *(["", *found.details()] if details else [])])
    output.emit(found.document(), lambda _: text)
    if not found.ok:
        context.exit(3)
