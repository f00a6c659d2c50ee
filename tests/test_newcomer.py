"""What a newcomer does: clone, install, and follow the README and the quick start in an empty folder."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "src pyproject.toml README.md LICENSE docs"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A fresh environment with hilm built from what git tracks, over the packages that are here."""
    folder = tmp_path_factory.mktemp("newcomer")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", *PACKAGE.split()], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        target = folder / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    venv.create(folder / "env", symlinks=True, with_pip=False)
    purelib = next((folder / "env" / "lib").glob("python*/site-packages"))
    (purelib / "here.pth").write_text(sysconfig.get_path("purelib"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "install",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    subprocess.run([*pip, "--prefix", folder / "env", "--ignore-installed", folder / "clone"], check=True)
    return folder / "env" / "bin"


def test_the_quick_start_works_outside_of_the_source(installed, tmp_path):
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for language, text in re.findall(r"```(python|console)\n(.*?)```", page, re.DOTALL):
        if language == "python":
            subprocess.run([installed / "python", "-c", text], cwd=tmp_path, env={}, check=True)
        for line in re.findall(r"^\$ (hilm .*)$", text, re.MULTILINE):
            words = [installed / "hilm", *shlex.split(line, comments=True)[1:]]
            environment = {"HILM_HOME": str(tmp_path / "home"), "PATH": str(installed)}
            done = subprocess.run(
                words, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{line}: {done.stderr}"
            assert done.stdout


def test_what_is_imported_is_what_was_installed(installed, tmp_path):
    show = "import hilm, hilm.reel.decoder; print(hilm.__file__)"
    home = subprocess.run(
        [installed / "python", "-P", "-c", show],
        cwd=tmp_path,
        env={},
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(home.stdout.strip()).is_relative_to(installed.parent)
