"""The page that describes the reel format agrees with the program that writes it."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np

from hilm.reel import delta_model, head, manifest, sections
from hilm.reel.crc32c import crc32c
from hilm.reel.records import RECORD, RECORD_LIMIT, Kind
from hilm.reel.schema import Manifest
from hilm.reel.tables import frequencies

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
FLAT = " ".join(PAGE.split())


def test_every_key_of_the_manifest_has_its_row():
    rows = re.findall(
        r"^\| (`.*?) \|", PAGE.partition("## Manifest")[2].partition("## Slabs")[0], re.MULTILINE
    )
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(Manifest.__annotations__)


def test_magic_numbers_are_those_of_the_program():
    assert f"`{sections.UUID.hex()[:8]}-" in PAGE
    assert sections.UUID.hex() == re.search(r"UUID: `([\w-]+)`", PAGE)[1].replace("-", "")
    assert (sections.HEADER_BYTES, sections.FOOTER_BYTES, RECORD.itemsize) == (64, 128, 24)
    assert crc32c(b"123456789") == int(re.search(r"`123456789` it is `(\w+)`", FLAT)[1], 16)
    fields = re.search(r"these 24 bytes: (\w+) '(\w+)' '(\w+)' (\w+) '(\w+)' '(\w+)'", PAGE).groups()
    size, kind, brand, version, *others = fields
    atom = struct.pack(">I4s4sI", int(size, 16), kind.encode(), brand.encode(), int(version, 16))
    assert atom + "".join(others).encode() == sections.EMPTY_FRONT
    assert f"records of 2^{RECORD_LIMIT.bit_length() - 1} bytes" in FLAT


def test_coders_kinds_and_flags_are_numbered_alike():
    listed = re.search(r"\| u8 coder \| (.*?) \|", PAGE)[1]
    assert listed == ", ".join(f"{c.value} {c.name.lower().replace('_', '-')}" for c in head.Coder)
    assert [int(k) for k in re.findall(r"(\d) (?:slab head|data|blob|video|sampled)", FLAT)] == list(Kind)
    assert f"{delta_model.SENDS_ACTIVITY} activity, {delta_model.SENDS_DRIFT} drift" in PAGE


def test_the_trellis_and_the_octave_are_those_of_the_program():
    assert json.loads(re.search(r"\[\[0,1\].*?\]\]", PAGE)[0]) == manifest.CODING["next"]
    octave = [int(n) for n in re.search(r"With B = ([\d, ]+)", PAGE)[1].rstrip(", ").split(",")]
    code = 20
    (found,) = frequencies(np.array([[code, code + 1]]))
    sizes = [octave[(v - 1) % 8] << (v - 1) // 8 for v in (code, code + 1)]
    shares = [1 + size * 4094 // sum(sizes) for size in sizes]
    assert list(found) == [shares[0], 4096 - shares[0]]
