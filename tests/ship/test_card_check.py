from __future__ import annotations

import pytest

from hilm.errors import InputError
from hilm.ship import check
from tests.ship.cards import body, corrupt, errors, good


def test_a_finding_tells_file_line_and_fix(tmp_path):
    folder = good(tmp_path / "m")
    body("trained in /home/someone/runs/7")(folder)
    (found,) = check(folder)
    lines = (folder / "README.md").read_text().splitlines()
    assert (found.file, lines[found.line - 1]) == ("README.md", "trained in /home/someone/runs/7")
    assert found.fix


def test_more_licences_can_be_allowed(tmp_path):
    folder = good(tmp_path / "m", license="company-1.0")
    assert errors(folder) == {"C02"}
    assert not errors(folder, licenses=["company-1.0"])


def test_weights_need_not_be_read(tmp_path):
    folder = good(tmp_path / "m")
    corrupt(folder)
    assert not check(folder, scan=False)


def test_what_is_not_published_is_not_checked(tmp_path):
    folder = good(tmp_path / "m")
    (folder / "training_args.bin").write_bytes(b"x")
    assert errors(folder) == {"C16"}
    assert not check(folder, files={n: folder / n for n in ("README.md", "config.json", "model.safetensors")})


def test_no_folder():
    with pytest.raises(InputError, match="no folder"):
        check("nowhere")
