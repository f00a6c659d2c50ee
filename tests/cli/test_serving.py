from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from hilm.cli.main import hilm as commands
from hilm.cli.options import complete_models

PROGRAM = "import sys; from hilm.cli.main import main; sys.exit(main())"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_that_shell(shell, hilm):
    ran = hilm("completion", shell)
    assert ran.code == 0
    assert "_HILM_COMPLETE" in ran.out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=ran.out, text=True, check=True)


def complete(*words, **environment):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PATH": "", "_HILM_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words),
             "COMP_CWORD": str(len(words) - 1), "PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ran.stdout.splitlines()


def test_names_of_models_complete(hilm, tmp_path):
    assert hilm("index", "base", "tuned", "--storage-dir", str(tmp_path / "s")).code == 0
    home = str(tmp_path / "s")
    assert complete("hilm", "show", "b", HILM_HOME=home) == ["plain,base"]
    assert set(complete("hilm", "diff", "base", "", HILM_HOME=home)) == {"plain,base", "plain,tuned"}
    assert complete("hilm", "search", "./x", HILM_HOME=home) == ["file,./x"]
    assert complete("hilm", "inspect", "q", HILM_HOME=str(tmp_path / "none")) == ["file,q"]


def test_a_store_of_the_command_line_completes(hilm, tmp_path):
    hilm("index", "base", "--storage-dir", str(tmp_path / "s"))
    show = commands.get_command(None, "show")
    context = show.make_context("show", ["--storage-dir", str(tmp_path / "s")], resilient_parsing=True)
    assert [item.value for item in complete_models(context, show.params[0], "")] == ["base"]


def test_a_user_is_added(tmp_path):
    people = tmp_path / "people"
    ran = CliRunner().invoke(
        commands,
        ["serve", "--auth-file", str(people), "--add-user", "ada", "--json"],
        input="secret\nsecret\n",
    )
    assert ran.exit_code == 0
    assert json.loads(ran.stdout) == {"user": "ada", "file": str(people)}
    assert people.read_text().startswith("ada:scrypt$")


@pytest.mark.parametrize(
    "words",
    [
        ["--add-user", "ada"],
        ["--host", "0.0.0.0"],
        ["--auth-file", "base/config.txt"],
        ["--storage-dir", "base"],
        ["--port", "70000"],
        ["--export-space", "space"],
    ],
)
def test_what_cannot_be_served_is_told(hilm, words):
    ran = hilm("serve", *words)
    assert ran.code in {1, 2}
    assert ran.out == ""
    assert [line.partition(":")[0] for line in ran.err.splitlines()] == ["error", "hint"]
