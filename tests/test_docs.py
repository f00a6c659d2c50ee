"""The documentation: its pages run, its generated pages are up to date, and the site builds without a gap."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import DOCS, run_page

ROOT = DOCS.parent


@pytest.mark.parametrize("name", ["index.md", "tutorial.md"])
def test_pages_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HILM_HOME", str(tmp_path / "home"))
    assert run_page(DOCS / name, capsys)


def test_troubleshooting_quotes_messages_there_are():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [text for line in re.findall(r"\*\*(.*?)\*\*", page) for text in re.findall(r"`(.*?)`", line)]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert len(quoted) > 3
    for text in quoted:
        for part in filter(None, (part.strip() for part in text.split("…"))):
            assert part in sources or re.fullmatch(r"(CUDA|hilm) .*", part), part


def test_pages_of_commands_are_up_to_date():
    subprocess.run([sys.executable, DOCS / "pages.py", "--check"], check=True)


def test_the_site_builds(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    subprocess.run(build, cwd=ROOT, check=True)
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "fonts.googleapis.com" not in home
    assert (tmp_path / "site" / "commands" / "search" / "index.html").is_file()
    assert Path(tmp_path / "site" / "format" / "index.html").is_file()
