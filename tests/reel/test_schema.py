from __future__ import annotations

import pytest

from hilm.errors import HeaderError, UnsupportedFormat, UnsupportedVersion
from hilm.reel.manifest import canonical_json, check_manifest, parse_manifest
from tests.reel.documents import manifest_of, refused, tensor_of


@pytest.mark.parametrize("key", sorted(manifest_of()))
def test_every_part_is_required_and_typed(key):
    lacking, wrong = manifest_of(), manifest_of()
    del lacking[key]
    wrong[key] = 1.5
    for document in (lacking, wrong):
        with pytest.raises((HeaderError, UnsupportedFormat, UnsupportedVersion)):
            check_manifest(document)


@pytest.mark.parametrize(
    "change",
    [
        {"bits": -1},
        {"bits": True},
        {"bits": 1 << 63},
        {"bits": 1.0},
        {"shape": [4, "8"]},
        {"slabs": [[0, 4, 0]]},
        {"slabs": {}},
        {"sha256": "0" * 63},
        {"sha256": "G" * 64},
        {"unit": "bytes"},
        {"alias_of": 3},
        {"column_gain": 1},
    ],
)
def test_tensor_members_are_typed(change):
    assert refused(manifest_of(tensor_of() | change)) == "type"


def test_fault_names_the_place():
    with pytest.raises(HeaderError, match=r"manifest\['tensors'\]\[0\]\['shape'\]\[1\] is not a count"):
        check_manifest(manifest_of(tensor_of() | {"shape": [4, None]}))


def test_lone_surrogates_are_refused():
    raw = canonical_json(manifest_of(tensor_of(name="NAME"))).replace(b"NAME", b"\\ud800")
    with pytest.raises(HeaderError, match="not text"):
        parse_manifest(raw)
