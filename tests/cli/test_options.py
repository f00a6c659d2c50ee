from __future__ import annotations

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hilm.cli.options import (
    Command,
    LayerTypes,
    Several,
    at_revision,
    revision,
    selection,
    spread,
    storage_dir,
    switches,
)
from hilm.errors import UsageError

FLAGS = {"--models": Several(["--models"]), "--layers": LayerTypes(["--layers"])}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ""),
        ("--models A B C --max 3", "--models A --models B --models C --max 3"),
        ("A --models B", "A --models B"),
        ("--layers attention mlp --models A B", "--layers attention --layers mlp --models A --models B"),
        ("--layers attention ./model", "--layers attention ./model"),
        ("--layers attention ./model mlp", "--layers attention ./model mlp"),
        ("--layers=attention mlp", "--layers=attention mlp"),
        ("--layers attention --json mlp", "--layers attention --json mlp"),
        ("--models A -- --models B C", "--models A -- --models B C"),
        ("--models A --models B C", "--models A --models B --models C"),
    ],
)
def test_a_flag_is_written_again_before_each_further_value(line, expected):
    assert spread(line.split(), FLAGS) == expected.split()


@given(st.lists(st.sampled_from(["--models", "--max", "-q", "A", "B", "3"])))
def test_spreading_adds_flags_only_and_is_done_once(words):
    once = spread(words, FLAGS)
    assert [word for word in once if word != "--models"] == [word for word in words if word != "--models"]
    assert spread(once, FLAGS) == once


def test_an_existing_folder_ends_layer_types_unless_it_is_named_like_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "mlp").mkdir()
    words = ["--layers", "attention", "mlp", "model"]
    assert spread(words, FLAGS) == ["--layers", "attention", "--layers", "mlp", "model"]


@click.command(cls=Command, examples=("hilm try --layers attention",))
@click.argument("model")
@selection
@storage_dir
@switches
@click.pass_context
def attempt(context, **parameters):
    click.echo(sorted((key, value) for key, value in parameters.items() if value))
    click.echo(sorted(key for key, value in context.meta.items() if value is True))


def test_common_options_reach_the_command_or_the_output():
    ran = CliRunner().invoke(
        attempt, ["m", "--layers", "attention", "mlp", "--max-params", "7", "--json", "-q"]
    )
    assert ran.exit_code == 0, ran.output
    values, kept = ran.output.splitlines()
    assert values == "[('layers', ('attention', 'mlp')), ('max_params', 7), ('model', 'm')]"
    assert kept == "['hilm.cli.output.json', 'hilm.cli.output.quiet']"


@pytest.mark.parametrize("words", [["--max-params", "0"], ["--chunk-size", "-1"], ["--max-params", "many"]])
def test_numbers_out_of_range_are_refused(words):
    assert CliRunner().invoke(attempt, ["m", *words]).exit_code == 2


@click.command()
@click.argument("model")
@revision
def find(model, revision):
    click.echo(at_revision(model, revision))


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ("org/m", "org/m"),
        ("org/m --revision a/b", "hf://org/m@a%2Fb"),
        ("org/m --weights-file a.bin", "hf://org/m/a.bin"),
        ("org/m --revision v1 --weights-file a.bin", "hf://org/m@v1/a.bin"),
        ("org/m --variant fp16", "org/m#fp16"),
        ("./m/ --weights-file a.bin", "./m/a.bin"),
        ("./m --variant fp16", "./m#fp16"),
        ("hf://org/m@v1 --variant fp16", "hf://org/m@v1#fp16"),
    ],
)
def test_a_model_is_addressed_with_its_revision_file_and_variant(words, address):
    ran = CliRunner().invoke(find, words.split())
    assert ran.output == f"{address}\n"


def test_a_folder_has_no_revisions():
    ran = CliRunner().invoke(find, ["./m", "--revision", "main"])
    assert isinstance(ran.exception, UsageError)


def test_examples_end_the_help():
    assert (
        CliRunner()
        .invoke(attempt, ["--help"])
        .output.endswith("Examples:\n  $ hilm try --layers attention\n")
    )
