from __future__ import annotations

import random
import signal
import subprocess
import sys

import numpy as np
import pytest

from hilm.errors import UsageError
from hilm.reel import journal, layout
from hilm.reel.decoder import Reel
from hilm.reel.delta_base import CheckpointBase
from hilm.reel.delta_encoder import encode_delta
from hilm.reel.encoder import encode_archive, encode_small
from hilm.reel.rate import Rounding
from hilm.weights import open_checkpoint
from tests.reel.archives import encode
from tests.tiny import bert_like, write_model

TENSORS = bert_like(width=32, layers=1)
COUNT = len(TENSORS)  # a slab each
TABLE = "embeddings.word_embeddings.weight"


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "m", TENSORS)


@pytest.fixture
def whole(model, tmp_path):
    """The bytes of an encode that nothing interrupted."""
    encode(model, tmp_path / "whole", preview=True)
    return (tmp_path / "whole").read_bytes()


@pytest.fixture
def at_once(monkeypatch):
    """Every slab is written to the journal."""
    monkeypatch.setattr(journal, "SYNC_SECONDS", 0)


class Interruption(BaseException):
    pass


def interrupt(model, out, block):
    """Encode up to a block of the source."""
    left = block

    def count(_):
        nonlocal left
        left -= 1
        if left < 0:
            raise Interruption

    with pytest.raises(Interruption):
        encode(model, out, preview=True, sinks=[count])


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.mark.usefixtures("at_once")
def test_an_interrupted_encode_goes_on_and_ends_the_same(model, whole, tmp_path):
    out = tmp_path / "x"
    for block in (1, 9, 9, COUNT - 1):
        interrupt(model, out, block)
        assert names(tmp_path) == ["whole", "x.part", "x.part.journal"]
    report = encode(model, out, preview=True)
    assert out.read_bytes() == whole
    assert report.resumed == COUNT
    assert names(tmp_path) == ["whole", "x"]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", range(12))
def test_a_torn_journal_or_part_costs_time_and_nothing_else(model, whole, tmp_path, seed):
    generator, out = random.Random(seed), tmp_path / "x"
    interrupt(model, out, 10)
    victim = tmp_path / generator.choice(["x.part", "x.part.journal"])
    data = bytearray(victim.read_bytes())
    place = generator.randrange(len(data))
    if seed % 3 == 0:
        del data[place:]
    elif seed % 3 == 1:
        data[place] ^= 1 << generator.randrange(8)
    else:
        data += b"rubbish\n"
    victim.write_bytes(data)
    assert encode(model, out, preview=True).resumed <= 11
    assert out.read_bytes() == whole
    assert names(tmp_path) == ["whole", "x"]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("quantiser", ["tcq", "ecsq"])
def test_rounded_weights_go_on_too(model, tmp_path, quantiser):
    rounding = Rounding(error=0.01, quantiser=quantiser)
    with open_checkpoint(model) as checkpoint:
        encode_small(checkpoint, tmp_path / "whole", rounding)

        def stop(block):
            if block.info.name.endswith("intermediate.dense.weight"):
                raise Interruption

        with pytest.raises(Interruption):
            encode_small(checkpoint, tmp_path / "x", rounding, sinks=[stop])
        report = encode_small(checkpoint, tmp_path / "x", rounding)
    assert 0 < report.resumed < COUNT
    assert (tmp_path / "x").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.fixture
def family(tmp_path):
    """A base, and a fine-tune of it with a tensor that the base does not have, of several slabs."""
    rng = np.random.default_rng(0)
    base = bert_like(width=64, layers=1)
    tuned = {
        name: value + (1e-3 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in base.items()
    }
    tuned["head.weight"] = rng.standard_normal((3, 64)).astype(np.float32)
    return write_model(tmp_path / "tuned", tuned), write_model(tmp_path / "base", base)


def encode_difference(family, out, **options):
    with open_checkpoint(family[0]) as checkpoint, open_checkpoint(family[1]) as base:
        return encode_delta(checkpoint, out, CheckpointBase(base), threads=1, **options)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("bits", [None, 3])
def test_deltas_go_on_too_within_a_tensor_and_between(family, tmp_path, monkeypatch, bits):
    monkeypatch.setattr(layout, "SLAB_ELEMENTS", 640)  # ten rows: most matrices are several slabs
    expected = encode_difference(family, tmp_path / "whole", bits=bits)
    with Reel.open(tmp_path / "whole") as reel:
        slabs = [len(entry["slabs"]) for entry in reel.tensors.values()]
    note, left = journal.Journal.note, 0

    def stop(self, entries, position):
        nonlocal left
        left -= 1
        if left < 0:
            raise Interruption
        return note(self, entries, position)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "note", stop)
        for left in (2, 1, 5, sum(slabs) // 2):  # noqa: B007 - counted down above
            with pytest.raises(Interruption):
                encode_difference(family, tmp_path / "x", bits=bits)
    report = encode_difference(family, tmp_path / "x", bits=bits)
    assert max(slabs) > 4
    assert report.resumed == 8 + sum(slabs) // 2
    assert (report.unpaired, report.energy_lost) == (("head.weight",), expected.energy_lost)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.usefixtures("at_once")
def test_a_delta_from_a_base_that_changed_begins_anew(family, tmp_path):
    def stop(block):
        if block.info.name.endswith("intermediate.dense.weight"):
            raise Interruption

    with pytest.raises(Interruption):
        encode_difference(family, tmp_path / "x", sinks=[stop])
    write_model(tmp_path / "base", bert_like(seed=1, width=64, layers=1))
    assert encode_difference(family, tmp_path / "x").resumed == 0
    encode_difference(family, tmp_path / "whole")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.usefixtures("at_once")
def test_a_delta_that_loses_too_much_leaves_nothing(family, tmp_path):
    with pytest.raises(UsageError, match="energy"):
        encode_difference(family, tmp_path / "x", bits=0.5)
    assert names(tmp_path) == []


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("lost", ["x.part", "x.part.journal"])
def test_one_file_without_the_other_is_of_no_use(model, whole, tmp_path, lost):
    interrupt(model, tmp_path / "x", 10)
    (tmp_path / lost).unlink()
    assert encode(model, tmp_path / "x", preview=True).resumed == 0
    assert (tmp_path / "x").read_bytes() == whole


@pytest.mark.usefixtures("at_once")
def test_another_source_or_setting_begins_anew(model, whole, tmp_path):
    out = tmp_path / "x"
    interrupt(model, out, 10)
    assert encode(model, out, preview=False).resumed == 0
    interrupt(model, out, 10)
    changed = TENSORS | {
        "embeddings.word_embeddings.weight": TENSORS["embeddings.word_embeddings.weight"] * 2
    }
    write_model(tmp_path / "m", changed)
    assert encode(model, out, preview=True).resumed == 0
    assert out.read_bytes() != whole


def test_a_short_run_leaves_no_journal(model, tmp_path):
    interrupt(model, tmp_path / "x", 10)
    assert names(tmp_path) == []


@pytest.mark.usefixtures("at_once")
def test_a_source_that_changes_meanwhile_leaves_nothing(model, tmp_path):
    def touch(block):
        if block.info.name.endswith("position_embeddings.weight"):
            write_model(tmp_path / "m", {"other": TENSORS["embeddings.LayerNorm.bias"]})

    with open_checkpoint(model) as checkpoint, pytest.raises(Exception, match=r"changed|disappeared|early"):
        encode_archive(checkpoint, tmp_path / "x", preview=False, sinks=[touch])
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from hilm.reel import journal
from hilm.reel.delta_base import CheckpointBase
from hilm.reel.delta_encoder import encode_delta
from hilm.reel.encoder import encode_archive
from hilm.weights import open_checkpoint

journal.SYNC_SECONDS, left = 0, int(sys.argv[3])

def count(block):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

model, out, _, *base = sys.argv[1:]
with open_checkpoint(model) as checkpoint:
    if base:
        with open_checkpoint(base[0]) as old:
            bits = int(base[1]) or None
            encode_delta(checkpoint, Path(out), CheckpointBase(old), bits=bits, sinks=[count], threads=2)
    else:
        encode_archive(checkpoint, Path(out), sinks=[count], threads=2)
"""


def kill(*words):
    command = [sys.executable, "-c", KILLED, *map(str, words)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("bits", [0, 3])
def test_kill_9_of_a_delta(family, tmp_path, bits):
    out = tmp_path / "x"
    for moment in (4, 15):
        kill(family[0], out, moment, family[1], bits)
    assert not out.exists()
    assert encode_difference(family, out, bits=bits or None).resumed >= 15
    encode_difference(family, tmp_path / "whole", bits=bits or None)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    "moments", [[3, 12], pytest.param(range(COUNT), marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_kill_9_at_any_moment(model, whole, tmp_path, moments):
    out = tmp_path / "x"
    for moment in moments:
        kill(model, out, moment)
        assert not out.exists()
        assert encode(model, out, preview=True).resumed >= moment
        assert out.read_bytes() == whole
        out.unlink()
    assert names(tmp_path) == ["whole"]
