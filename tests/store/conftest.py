from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from hilm.store import Store
from tests.tiny import bert_like, write_model


def tiny(seed=0, **sizes):
    """Weights of 12,000 parameters: enough for every part of a fingerprint, done in milliseconds."""
    return bert_like(
        seed, **{"width": 32, "layers": 1, "hidden": 64, "vocabulary": 200, "positions": 16} | sizes
    )


def tuned(base, seed=9):
    """The weights, each moved a little."""
    random = np.random.default_rng(seed)
    return {n: v + np.float32(0.0005) * random.standard_normal(v.shape, np.float32) for n, v in base.items()}


def contents(folder):
    """Every file below a folder with its SHA-256, caches aside."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != "cache"
    }


def rows(store, table, *without):
    """Rows of a table without what differs from run to run, by key."""
    dropped = {"run_id", "created_at", "seconds", *without}
    found = [{k: v for k, v in row.items() if k not in dropped} for row in store.catalog.rows(table)]
    return sorted(found, key=lambda row: str(next(iter(row.values()))))


def start(*words, **options):
    """The command in a process of its own."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from hilm.cli.main import main; sys.exit(main())",
            *map(str, words),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(*words, **options):
    """The command to its end: exit code, stdout and stderr."""
    process = start(*words, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope="session")
def house(tmp_path_factory):
    """Folders of tiny checkpoints: ``base``, its fine-tune ``tuned``, and four strangers."""
    root = tmp_path_factory.mktemp("house")
    base = tiny(1)
    write_model(root / "base", base, config={"architectures": ["BertModel"]})
    write_model(root / "tuned", tuned(base))
    for number in range(4):
        write_model(root / f"stranger-{number}", tiny(100 + number))
    return root


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")
