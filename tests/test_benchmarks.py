"""The benchmark harness: gates, result files, tables. What is measured is not tested here."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import harness  # noqa: E402 - benchmarks are scripts, found by their folder
import models  # noqa: E402
import plot  # noqa: E402
import processes  # noqa: E402
import run  # noqa: E402
import tables  # noqa: E402

from hilm.weights import open_checkpoint  # noqa: E402

SPEED = harness.Gate("rate / bare loop", 0.4996, ">=", 0.5, "x", aim=1.0)
TIME = harness.Gate("wall | time", 83.2, "<", 150, "ms")
RESULT = harness.Result(
    "speed", "It is fast", "python speed.py", (SPEED, TIME), {"read": (1503.7, "M values/s")}
)


@pytest.mark.parametrize(
    ("value", "comparison", "required", "ok"),
    [
        (5, "<=", 5, True),
        (5, "<", 5, False),
        (0.5, ">=", 0.5, True),
        (0.499999, ">=", 0.5, False),
        (math.nan, "<", 5, False),
        (math.nan, ">=", 5, False),
    ],
)
def test_gate_compares_what_was_measured(value, comparison, required, ok):
    assert harness.Gate("g", value, comparison, required, "").ok is ok


@given(
    value=st.floats(1e-6, 1e9),
    factor=st.floats(0.999, 1.001),
    comparison=st.sampled_from(sorted(harness.COMPARE)),
)
def test_printed_number_tells_the_same_as_the_measured_one(value, factor, comparison):
    required = value * factor
    printed = float(harness.number(value, "", comparison, required).replace(",", ""))
    assert harness.COMPARE[comparison](printed, required) == harness.COMPARE[comparison](value, required)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (83.249, "ms", "83.2 ms"),
        (1503.7, "M/s", "1,500 M/s"),
        (120, "s", "120 s"),
        (0.000123456, "", "0.000123"),
    ],
)
def test_number_has_three_digits(value, unit, text):
    assert harness.number(value, unit) == text


def test_pairs_take_turns_and_compare_neighbours():
    order = []
    pairs = harness.paired(lambda: order.append("a"), lambda: order.append("b"), 3)
    assert "".join(order) == "ab" * 4  # one warm-up each
    assert len(pairs.first) == len(pairs.second) == 3
    assert harness.Pairs((1.0, 20.0, 3.0), (1.0, 10.0, 1.0)).ratio == 2.0


def test_recorded_result_holds_every_field(tmp_path):
    document = json.loads(harness.record(RESULT, tmp_path).read_text())
    assert document["ok"] is False
    assert document["gates"][0] == {
        "name": "rate / bare loop", "value": 0.4996, "comparison": ">=", "required": 0.5,
        "unit": "x", "aim": 1.0, "ok": False,
    }  # fmt: skip
    assert document["gates"][1]["ok"] is True
    assert document["figures"] == {"read": {"value": 1503.7, "unit": "M values/s"}}
    assert document["machine"].keys() == {"cpu", "cores", "memory_gib", "system", "python", "numpy", "numba"}
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]


def test_result_that_is_no_number_replaces_nothing(tmp_path):
    path = harness.record(RESULT, tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        harness.record(harness.Result("speed", "", "", (), {"read": (math.nan, "")}), tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("gates", "code"), [((TIME,), 0), ((TIME, SPEED), harness.MISSED)])
def test_exit_code_follows_the_gates(gates, code, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        harness.main(lambda: harness.Result("speed", "It is fast", "", gates), tmp_path)
    assert end.value.code == code
    assert ("NO" in capsys.readouterr().out) is bool(code)


@pytest.fixture
def site(tmp_path):
    """Return a repository with one result and both pages."""
    harness.record(RESULT, tmp_path / "results")
    for name in tables.PAGES:
        page = tmp_path / name
        page.parent.mkdir(exist_ok=True)
        page.write_text(f"# Before\n{tables.START}\nold\n{tables.END}\nAfter\n")
    return tmp_path


def test_tables_are_written_once(site):
    results = site / "results"
    assert tables.main(["--check"], site, results) == 1
    assert "old" in (site / "README.md").read_text()  # checking writes nothing
    assert tables.main([], site, results) == 0
    written = (site / "README.md").read_text()
    assert tables.main(["--check"], site, results) == 0
    assert tables.main([], site, results) == 0
    assert (site / "README.md").read_text() == written
    assert written.startswith("# Before\n")
    assert written.endswith("After\n")


def test_tables_say_what_was_missed(site):
    tables.main([], site, site / "results")
    row = next(line for line in (site / "README.md").read_text().splitlines() if "It is fast" in line)
    assert row == (
        "| It is fast | rate / bare loop: 0.4996 x (missed)<br>wall \\| time: 83.2 ms "
        "| ≥ 0.5 x, aim 1 x<br>< 150 ms |"
    )
    page = (site / "docs/benchmarks.md").read_text()
    assert "## Speed" in page
    assert "| read | 1,500 M values/s |  |" in page


def test_check_sees_a_changed_result(site, capsys):
    tables.main([], site, site / "results")
    faster = harness.Result(
        "speed", "It is fast", "python speed.py", (SPEED, TIME), {"read": (1700.0, "M/s")}
    )
    harness.record(faster, site / "results")
    assert tables.main(["--check"], site, site / "results") == 1
    assert "docs/benchmarks.md are not up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    "page", ["", tables.START, f"{tables.END}{tables.START}", tables.START * 2 + tables.END]
)
def test_page_without_a_place_for_the_table_is_refused(page):
    with pytest.raises(ValueError, match="once each"):
        tables.fill(page, ["line"])


def test_stored_results_have_the_fields_the_tables_need():
    for document in tables.load():
        gates = [harness.Gate(**{k: v for k, v in g.items() if k != "ok"}) for g in document["gates"]]
        assert [gate.ok for gate in gates] == [g["ok"] for g in document["gates"]], document["name"]
        assert document["ok"] == all(gate.ok for gate in gates), document["name"]
        assert document["name"] in run.BENCHMARKS


def test_every_benchmark_has_a_script_and_a_claim():
    scripts = {path.stem for path in BENCHMARKS.glob("*.py") if "def measure()" in path.read_text()}
    assert scripts == set(run.BENCHMARKS)
    assert all(run.claim(name).endswith(".") for name in run.BENCHMARKS)


def test_summary_leaves_out_what_broke():
    text = run.summary({"demo": 1, "nothing": 0})
    assert text.strip() == "demo: broken"


def test_watched_command_is_measured_with_its_children():
    child = "x = bytearray(60 << 20); x[::4096] = bytes(len(x[::4096])); import time; time.sleep(0.3)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print('done')"
    seen = processes.watch([sys.executable, "-c", parent])
    assert seen.out == "done\n"
    assert seen.wall > 0.3
    assert 0 < seen.cpu < seen.wall * os.cpu_count()
    assert seen.peak > 60 << 20


def test_watched_command_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"exited with 2.*no luck"):
        processes.watch([sys.executable, "-c", "import sys; sys.stderr.write('no luck'); sys.exit(2)"])


def test_extra_memory_is_what_the_action_takes():
    assert abs(processes.extra_memory(np.ones, 8 << 20) - (64 << 20)) < 8 << 20
    assert processes.extra_memory(time.sleep, 0) < 8 << 20


def test_plotted_lines_end_at_their_names(tmp_path):
    lines = [
        plot.Line("high", (200, 0, 0), [(1, 3.0), (10, 2.0)]),
        plot.Line("low", (0, 0, 200), [(1, 3.0), (10, 1.0)]),
    ]
    plot.plot(tmp_path / "p.png", "Title", [("one", lines), ("two", lines)])
    pixels = np.asarray(Image.open(tmp_path / "p.png"))
    half = pixels[:, : plot.LEFT + plot.WIDTH]
    rows = {line.name: np.flatnonzero((half == line.colour).all(-1)[:, -112:].any(1)) for line in lines}
    assert abs(rows["high"].mean() - (plot.TOP + plot.HEIGHT / 2)) < 8
    assert abs(rows["low"].mean() - (plot.TOP + plot.HEIGHT)) < 8
    assert (pixels[:, plot.LEFT + plot.WIDTH :] == (200, 0, 0)).all(-1).any()


def test_pinned_keeps_all_threads_on_few_cores():
    before, end = os.sched_getaffinity(0), threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    with processes.pinned(1):
        assert len(os.sched_getaffinity(0)) == len(os.sched_getaffinity(other.native_id)) == 1
    assert os.sched_getaffinity(0) == os.sched_getaffinity(other.native_id) == before
    end.set()
    other.join()


@pytest.mark.parametrize("shards", [1, 2])
def test_synthetic_checkpoint_reads_back(tmp_path, shards):
    shapes = models.llama(width=32, layers=2, hidden=64, vocabulary=100, head=True)
    drawn = np.arange(models.parameters(shapes), dtype=np.uint16) & 0x3FFF
    parts = np.split(drawn, np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1])
    pending = iter(parts)
    folder = models.write(tmp_path / "m", shapes, "BF16", lambda _: next(pending), shards=shards)
    with open_checkpoint(folder) as checkpoint:
        assert {name: info.shape for name, info in checkpoint.tensors.items()} == shapes
        assert len(checkpoint.files) == shards
        for name, part in zip(shapes, parts, strict=True):
            np.testing.assert_array_equal(checkpoint.words(name), part.view(np.uint8))


def test_random_bf16_has_neither_nan_nor_infinity():
    words = models.random_bf16(np.random.default_rng(0))(1 << 17)
    values = (words.astype(np.uint32) << 16).view(np.float32)
    assert np.isfinite(values).all()
    assert len(np.unique(words)) > 30_000  # of 32,768
