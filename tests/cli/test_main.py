from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys

import click
import pytest

from hilm.cli.main import COMMANDS, CommandTable, describe, hilm, main, modernise
from hilm.errors import ChecksumMismatch, HilmError, MissingExtra, NetworkError, StorageError

HEAVY = {
    "numpy",
    "torch",
    "transformers",
    "huggingface_hub",
    "lancedb",
    "pyarrow",
    "av",
    "PIL",
    "numba",
    "tqdm",
}


def parsed(words):
    """The command and the parameters a command line means, without running it."""
    with hilm.make_context("hilm", modernise(words)) as context:
        name, command, rest = hilm.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        with command.make_context(name, rest, parent=context) as inner:
            return name, inner.params


def hilm_process(*words, code="from hilm.cli.main import main; sys.exit(main())", **environment):
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = 'hilm'; {code}", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def raising(monkeypatch):
    """Make every command raise a given error."""

    def arrange(error):
        @click.command()
        def fail():
            raise error

        monkeypatch.setattr(CommandTable, "get_command", lambda self, context, name: fail)

    return arrange


# --- what needs no command's module -----------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["-h"], [], ["--version"], ["serch"], ["--nonsense"]])
def test_the_table_alone_answers_without_heavy_imports(words):
    code = (
        "from hilm.cli.main import main; main(); "
        "print('|'.join(sys.modules), file=sys.stderr); print('commands', "
        "[name for name in sys.modules if name.startswith('hilm.cli.')], file=sys.stderr)"
    )
    seen = hilm_process(*words, code=code).stderr.splitlines()
    roots = {name.partition(".")[0] for name in seen[-2].split("|")}
    assert "click" in roots
    assert not HEAVY & roots
    assert not any(f"hilm.cli.{entry.target.partition(':')[0]}" in seen[-1] for entry in COMMANDS.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_imports_nothing_heavy_and_has_examples(name):
    code = "from hilm.cli.main import main; main(); print('|'.join(sys.modules), file=sys.stderr)"
    ran = hilm_process(name, "--help", code=code)
    roots = {module.partition(".")[0] for module in ran.stderr.splitlines()[-1].split("|")}
    assert not HEAVY & roots
    assert f"$ hilm {name}" in ran.stdout.partition("Examples:")[2]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("hilm se", {"search", "serve"}), ("hilm sh", {"show"}), ("hilm list --js", {"--json"})],
)
def test_the_shell_completes_commands_and_flags(typed, offered):
    position = str(len(typed.split()) - 1)
    ran = hilm_process(_HILM_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=position)
    assert {line.partition(",")[2] for line in ran.stdout.splitlines()} == offered
    assert ran.stderr == ""


def test_help_costs_less_than_150_ms_of_cpu():
    code = (
        "import time; from hilm.cli.main import main; main(['--help']); "
        "print(time.process_time(), file=sys.stderr)"
    )
    assert min(float(hilm_process(code=code).stderr) for _ in range(3)) < 0.15


def test_help_groups_every_command():
    text = hilm_process("--help").stdout
    for name, entry in COMMANDS.items():
        assert f"{entry.section}:" in text
        assert f"  {name} " in text
        assert entry.help in " ".join(text.split())


def test_no_arguments_print_the_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("Usage: hilm COMMAND")


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["serch", "x"], "error: there is no command 'serch'", "hint: did you mean 'hilm search'?"),
        (["qqqqqq"], "error: there is no command 'qqqqqq'", "hint: hilm --help lists the commands"),
        (["list", "--jsn"], "error: no such option '--jsn'", "hint: hilm list --help shows what it takes"),
        (["search", "x", "--top-k", "0"], "error: invalid value for '--top-k'", "hint: hilm search --help"),
        (["inspect"], "error: missing argument 'MODEL'", "hint: hilm inspect --help"),
        (["encode"], "error: no model to encode", "hint: name folders or files"),
        (["search"], "error: no model to search for", "hint: hilm search ./mystery-model"),
        (["encode", "x", "--mode", "tiny"], "error: invalid value for '--mode'", "hint: hilm encode --help"),
    ],
)
def test_wrong_usage_is_two_lines_and_exit_2(capsys, words, message, hint):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith(message)
    assert second.startswith(hint)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (HilmError("it broke", hint="mend it"), 1, "error: it broke\nhint: mend it"),
        (
            ChecksumMismatch("frame 3 differs"),
            3,
            f"error: frame 3 differs\nhint: {ChecksumMismatch.default_hint}",
        ),
        (MissingExtra("no torch", hint="pip install"), 4, "error: no torch\nhint: pip install"),
        (NetworkError("no answer"), 5, "error: no answer\nhint: hilm --help shows what there is"),
        (StorageError("disk full", hint="x"), 1, "error: disk full\nhint: x"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a/b"),
            1,
            "error: a/b: Permission denied\nhint: check the path, its permissions and the free space",
        ),
        (
            KeyboardInterrupt(),
            1,
            "error: interrupted\nhint: run the same command again; what was finished is kept",
        ),
        (
            ZeroDivisionError("1/0"),
            1,
            "error: unexpected ZeroDivisionError: 1/0\nhint: this is a bug in hilm; HILM_DEBUG=1 shows where",
        ),
        (HilmError("a\x1b[2Jb\nc", hint="x"), 1, "error: a\ufffd[2Jb\ufffdc\nhint: x"),
    ],
)
def test_every_error_is_two_lines_with_its_exit_code(raising, capsys, error, code, text):
    raising(error)
    assert main(["list"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == text


def test_an_operating_system_error_without_a_file_keeps_its_reason():
    assert describe(OSError("out of luck"))[0] == "out of luck"


def test_the_traceback_is_there_on_request_only(raising, capsys, monkeypatch):
    raising(ZeroDivisionError("1/0"))
    main(["list"])
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("HILM_DEBUG", "1")
    assert main(["list"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_ends_quietly():
    code = "from hilm.cli.main import main; sys.exit(main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        ran = subprocess.run(
            [sys.executable, "-c", f"import sys; {code}"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ran.stderr == ""


def test_offline_the_hub_is_out_of_reach_and_says_so(capsys):
    assert main(["--download-popular", "--max-params", "25000"]) == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "as a Hub id: openai-community/gpt2 at main is not in the local cache" in captured.err


# --- documented command lines -----------------------------------------------------------------------

DOCUMENTED = [
    (
        "--models bert-base-uncased gpt2 roberta-base --max-params 30000",
        "encode",
        {"more_models": ("bert-base-uncased", "gpt2", "roberta-base"), "max_params": 30000},
    ),
    (
        "--search-similar bert-base-uncased",
        "search",
        {"search_similar": "bert-base-uncased", "method": "hybrid"},
    ),
    (
        "--search-similar roberta-base --search-method features",
        "search",
        {"search_similar": "roberta-base", "method": "features"},
    ),
    (
        "--model bert-large-uncased --stream --max-params 50000 --chunk-size 8000",
        "encode",
        {"more_models": ("bert-large-uncased",), "stream": True, "max_params": 50000, "chunk_size": 8000},
    ),
    (
        "--model bert-large --stream --layers attention --max-params 5 --storage-dir attention_analysis",
        "encode",
        {"layers": ("attention",), "max_params": 5},
    ),
    (
        "--model gpt2 --stream --layers attention mlp --max-params 9",
        "encode",
        {"layers": ("attention", "mlp")},
    ),
    ("--list-models", "list", {}),
    ("--statistics", "stats", {}),
    ("--storage-dir experiment_1 --list-models", "list", {}),
    ("--download-popular --max-params 25000", "encode", {"download_popular": True, "max_params": 25000}),
    ("--search_similar=gpt2 --search_method hierarchical", "search", {"method": "hierarchical"}),
    ("search gpt2 --search_method features --top_k 3", "search", {"method": "features", "top_k": 3}),
    ("encode --models A B C --max_params 3", "encode", {"more_models": ("A", "B", "C"), "max_params": 3}),
    ("stream m --exclude_layers attention mlp", "stream", {"exclude_layers": ("attention", "mlp")}),
]


@pytest.mark.parametrize(("line", "command", "expected"), DOCUMENTED)
def test_documented_command_lines_mean_what_they_meant(line, command, expected):
    name, parameters = parsed(line.split())
    assert name == command
    assert {key: parameters[key] for key in expected} == expected


def test_a_former_spelling_is_pointed_out_on_stderr(capsys):
    modernise(["--list-models"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("note: read as 'hilm list --list-models'")
    modernise(["--quiet", "--list-models"])
    assert capsys.readouterr().err == ""


def test_switches_before_the_command_move_behind_it():
    assert modernise(["--json", "-q", "list", "--", "x"]) == ["list", "--json", "-q", "--", "x"]
    assert modernise(["--json"]) == ["--json"]
    assert modernise(["list", "--json"]) == ["list", "--json"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_can_be_typed(name):
    command = hilm.get_command(click.Context(hilm), name)
    assert command is not None
    assert len(command.examples) >= 2
    for example in command.examples:
        program, *words = shlex.split(example.partition("|")[0])
        assert program == "hilm"
        assert parsed(words)[0] == name


def test_output_that_the_terminal_cannot_spell_is_replaced():
    assert "COMMAND ?" in hilm_process("--help", PYTHONIOENCODING="latin-1").stdout


def test_list_of_an_empty_store_is_one_json_document(tmp_path):
    ran = hilm_process("list", "--json", HILM_HOME=str(tmp_path / "store"))
    assert ran.returncode == 0
    assert json.loads(ran.stdout) == {"models": []}
    assert ran.stderr == ""
