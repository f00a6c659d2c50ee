from __future__ import annotations

import math

import pytest

from hilm.errors import MissingExtra
from hilm.extras import EXTRAS, require


def test_what_is_there_is_returned():
    assert require("math") is math


def test_what_is_missing_names_the_command(monkeypatch):
    monkeypatch.setitem(EXTRAS, "not_installed_anywhere", "web")
    with pytest.raises(MissingExtra, match="not_installed_anywhere") as caught:
        require("not_installed_anywhere.part")
    assert caught.value.hint == 'pip install "hilm[web]"'
    assert caught.value.exit_code == 4
    assert isinstance(caught.value, ImportError)


def test_a_broken_package_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_inside.py").write_text("import another_thing_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="another_thing"):
        require("broken_inside")
