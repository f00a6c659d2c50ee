from __future__ import annotations

import collections
import io
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hilm.errors import HilmError, InputError, UnsupportedFormat
from hilm.weights import torch_zip
from hilm.weights.dtypes import DTYPES
from hilm.weights.torch_zip import parse_archive
from tests.hostile.edits import edits, mutate
from tests.hostile.torch_files import archive, cases, legacy, storage, table, tensor, valid_cases
from tests.weights.torch_archives import DTYPES_OF_TORCH, FORMS, check, parse, save, values

CASES = list(cases())
VALID = dict(valid_cases())


@FORMS
def test_shared_values_are_aliases_and_other_views_are_not(zipped):
    w = torch.arange(6.0).reshape(2, 3)
    names = {
        "a": w,
        "b": w,
        "p": torch.nn.Parameter(w),
        "flat": w.reshape(-1),
        "t": w.T,
        "same": w.view(2, 3),
    }
    entries = check(save(names, zipped=zipped), names)
    assert {name: entry.alias_of for name, entry in entries.items()} == {
        "a": None, "b": "a", "p": "a", "flat": None, "t": None, "same": "a"
    }  # fmt: skip


@FORMS
def test_training_checkpoints_open_at_the_model(zipped):
    model = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.BatchNorm1d(40))
    model[0](torch.ones(1, 40)).sum().backward()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    state = {
        "epoch": 3,
        "state_dict": {"module": model.state_dict()},
        "optimizer": optimizer.state_dict(),
        "step": torch.tensor(7),
        "args": {"lr": [1e-3], None: "x"},
    }
    data = save(state, zipped=zipped)
    check(data, {**model.state_dict(), "step": torch.tensor(7)})
    notes = parse(data).notes
    assert any("'optimizer' holds 6 tensors" in note for note in notes)
    assert any("'state_dict'" in note for note in notes)
    assert any("'module'" in note for note in notes)


def test_a_wrapper_is_opened_only_if_it_holds_nearly_all():
    a, b = torch.ones(9), torch.zeros(2)
    check(save({"model": {"w": a}, "ema": {"w": b}}), {"model.w": a, "ema.w": b})
    check(save({"model": {"w": a}, "w": b[:1].clone()}), {"model.w": a, "w": b[:1]})
    check(save({"model.w": a, "b": b}), {"model.w": a, "b": b})
    check(save({"model": {"w": a}}), {"w": a})


def test_containers_flatten():
    a, b = torch.ones(2), torch.zeros(3)
    nested = {"x": [a, (b, {7: a.clone()})], "y": collections.OrderedDict(z=b.clone()), "n": None}
    check(save(nested), {"x.0": a, "x.1.0": b, "x.1.1.7": a, "y.z": b})
    check(save([a, b]), {"0": a, "1": b})
    check(save(a), {"tensor": a})
    assert parse(save({})).entries == ()


def test_what_only_code_could_list_is_noted():
    w = torch.ones(3)
    holder = collections.Counter({"hidden": torch.zeros(2), "shown": w})
    result = parse(save({"w": w, "box": holder, ("a", 1): w.clone()}))
    assert [entry.name for entry in result.entries] == ["w"]
    assert any("'box': 1 tensors in what collections.Counter makes" in note for note in result.notes)
    assert any("no name of its own" in note for note in result.notes)
    assert any("not imported: collections.Counter" in note for note in result.notes)
    with pytest.raises(UnsupportedFormat, match=r"torch\.nn\.modules\.linear\.Linear"):
        parse(save(torch.nn.Linear(2, 2)))


def test_large_archives_and_large_pickles():
    """More pickle than the first window of the older form."""
    state = {f"layer.{i}.weight": torch.full((1,), float(i)) for i in range(3_000)} | {
        "note": "x" * (1 << 20)
    }
    expected = {name: value for name, value in state.items() if name != "note"}
    check(save(state), expected)
    check(save(state, zipped=False), expected)


def test_reads_stay_small():
    """Nothing of the storages is read but, in the older form, their counts."""
    state = {f"w{i}": torch.zeros(1 << 16) for i in range(4)}
    for zipped in (True, False):
        data = save(state, zipped=zipped)
        total = 0

        def read(start, stop, data=data):
            nonlocal total
            total += stop - start
            return data[start:stop]

        parse_archive(read, len(data))
        assert total < (1 << 20) + 10_000


@pytest.mark.parametrize("name", VALID)
def test_every_guise_of_two_numbers(name):
    data = VALID[name]
    (entry,) = parse(data).entries
    assert (entry.name, entry.dtype, entry.shape, entry.strides) == ("w", "F32", (2,), None)
    assert values(data, entry) == np.array([1, 2], "<f4").tobytes()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_files_are_refused_or_inert(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if case.error is None:
        assert [entry.name for entry in parse(case.data).entries] == ["w"]
    else:
        with pytest.raises(InputError) as caught:
            parse(case.data)
        assert type(caught.value) is case.error
        assert len(str(caught.value)) < 5_000
    assert not list(tmp_path.iterdir())


def test_hostile_files_are_many_and_named_apart():
    assert len({case.name for case in CASES}) == len(CASES) >= 120


def test_calls_of_strangers_are_text_in_a_note():
    data = next(case.data for case in CASES if case.name == "os-system")
    assert parse(data).notes == ("named in the pickle, not imported: os.system",)


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@FORMS
def test_a_file_that_runs_code_elsewhere_does_not_here(tmp_path, zipped):
    victim = tmp_path / "made-by-a-pickle"
    data = save({"x": Exploit(victim), "w": torch.ones(1)}, zipped=zipped)
    torch.load(io.BytesIO(data), weights_only=False)
    assert victim.is_dir()
    victim.rmdir()
    check(data, {"w": torch.ones(1)})
    assert not victim.exists()


AUDIT = """
import sys
from tests.hostile.torch_files import cases
from hilm.errors import HilmError
from hilm.weights.torch_zip import parse_archive
import numpy

files = [case for case in cases() if len(case.data) < 100_000]
seen = []

def watch(event, arguments):
    writes = event == "open" and (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
    if writes or event.split(".")[0] in ("exec", "import", "compile", "os", "subprocess", "socket"):
        seen.append((event, str(arguments)[:80]))

sys.addaudithook(watch)
for case in files:
    try:
        parse_archive(lambda start, stop: case.data[start:stop], len(case.data))
    except HilmError:
        pass
events, seen = seen, []
import this  # the watch works
print(len(files), events, bool(seen), "torch" in sys.modules)
"""


def test_no_hostile_file_makes_anything_happen():
    root = Path(__file__).parents[2]
    command, environment = [sys.executable, "-c", AUDIT], os.environ | {"PYTHONPATH": f"{root / 'src'}"}
    output = subprocess.check_output(command, cwd=root, env=environment, text=True)
    count, rest = output.splitlines()[-1].split(" ", 1)
    assert int(count) > 100
    assert rest == "[] True False"


def test_lying_files_cost_no_memory():
    lies = [case for case in CASES if case.error and len(case.data) < 20_000 and "billion" not in case.name]
    tracemalloc.start()
    for case in lies:
        with pytest.raises(HilmError):
            parse(case.data)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@st.composite
def tensors(draw):
    dtype = DTYPES_OF_TORCH[draw(st.sampled_from(sorted(DTYPES_OF_TORCH)))]
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    item = torch.empty((), dtype=dtype).element_size()
    count = int(np.prod(shape, dtype=int)) * item
    raw = torch.arange(count) % (2 if dtype == torch.bool else 256)
    value = raw.to(torch.uint8).view(dtype).reshape(shape)
    value = value.permute(draw(st.permutations(range(len(shape)))))
    for axis, size in enumerate(value.shape):
        first, last = sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size))))
        value = value.narrow(axis, first, last - first)
    return value


KEYS = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="."), min_size=1, max_size=8
)


@settings(max_examples=60)
@given(st.dictionaries(KEYS, tensors(), max_size=5), st.booleans())
def test_any_tensors_come_back(state, zipped):
    state = {name: value for name, value in state.items() if name not in torch_zip._WRAPPERS}
    check(save(state, zipped=zipped), state)


SMALL = {"w": torch.arange(4.0), "t": torch.ones(2, 3).T, "n": {"p": torch.nn.Parameter(torch.zeros(2))}}
SEEDS = [save(SMALL), save(SMALL, zipped=False), VALID["legacy-view"], VALID["zip"]]
PICKLE = zipfile.ZipFile(io.BytesIO(SEEDS[0])).read("archive/data.pkl")


@given(st.sampled_from([*SEEDS, None]), edits(1 << 16))
@example(None, [])
def test_mutants_are_refused_or_listed_within_bounds(seed, changes):
    """None stands for a sound archive around a mutated pickle."""
    if seed is None:
        stores = {f"a/data/{i}": bytes(24) for i in range(3)}
        data = archive({"a/data.pkl": bytes(mutate(PICKLE, changes))} | stores)
    else:
        data = bytes(mutate(seed, changes))
    try:
        entries = parse(data).entries
    except HilmError:
        return
    for entry in entries:
        item = DTYPES[entry.dtype].bits * DTYPES[entry.dtype].values // 8
        assert 0 <= entry.start <= entry.stop <= len(data)
        if np.prod(entry.shape, dtype=float) < 1e6:
            assert len(values(data, entry)) == np.prod(entry.shape, dtype=int) * item


def test_a_legacy_file_with_more_behind_it_is_noted():
    data = legacy(table(w=tensor(storage(view=b"N")))) + b"more"
    assert any("4 bytes behind" in note for note in parse(data).notes)
