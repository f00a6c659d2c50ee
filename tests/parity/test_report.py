from __future__ import annotations

import json
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from hilm.cli.output import plain
from hilm.parity.engine import compare
from hilm.parity.report import console, describe_divergence, junit, page
from hilm.parity.runners import module_runner
from hilm.parity.selftest import generated_items

MARKUP = "<b>&.png"


@pytest.fixture(scope="module")
def report(vit):
    item = replace(generated_items(vit.load())[0], name="cat", path=MARKUP, facts={"note": MARKUP})
    model = vit.load()
    model.layers[1].mlp.fc1.weight.data *= 1.02
    candidate = replace(module_runner(model), label=MARKUP)
    return compare(vit, candidate, [item], check_weights=False)


def test_the_first_divergence_is_one_line(report):
    line = describe_divergence(report)
    assert line.startswith("first divergence: layer.1 / mlp, ratio ")
    assert "worst token of cat t=" in line
    assert "inherited by layer.2" in line
    assert console(report).splitlines()[-1] == "verdict: fail"


def test_the_document_is_stable_json(report, vit):
    document = report.document()
    assert list(document)[:6] == [
        "schema",
        "reference",
        "candidate",
        "verdict",
        "verdicts",
        "first_divergence",
    ]
    text = json.dumps(plain(document), allow_nan=False)
    again = compare(vit, vit, report.items).document()
    assert json.dumps(plain(again)) == json.dumps(plain(compare(vit, vit, report.items).document()))
    assert json.loads(text)["stages"][3]["figures"]["cosine_min"] <= 1


def test_junit_parses(report):
    root = ET.fromstring(junit(report))
    suite = root.find("testsuite")
    assert suite.get("name") == "cat"
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) == 2


def test_the_page_is_one_escaped_file(report):
    text = page(report)
    assert MARKUP not in text
    assert "&lt;b&gt;&amp;.png" in text
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!data:image/png)', text)
    worst = report.first_divergence["token"]
    assert f">{worst[1]},{worst[2]},{worst[3]}</text>" in text
    assert text.count("<image") == 1
