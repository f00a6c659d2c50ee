from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import InputError
from hilm.weights import zip_directory
from hilm.weights.zip_directory import list_members
from tests.hostile.torch_files import archive, members, pickled, table, tensor
from tests.weights.torch_archives import parse, values

PARTS = st.text(st.characters(min_codepoint=33, max_codepoint=300, exclude_characters="/\\."), min_size=1)
NAMES = st.lists(PARTS.map(lambda part: part[:80]), min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(NAMES, st.binary(max_size=100), max_size=5))
def test_members_are_where_they_were_written(written):
    data = archive(written)
    found = list_members(lambda start, stop: data[start:stop], len(data))
    assert {name: data[start:stop] for name, (start, stop) in found.items()} == written


def test_the_64_bit_directory():
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        for name, data in members(pickled(table(w=tensor()))).items():
            with file.open(name, "w", force_zip64=True) as member:
                member.write(data)
        file.filelist[0].extra = b""
    plain = target.getvalue()
    end = plain.index(b"PK\5\6")
    count, length, begin = 3, end - plain.index(b"PK\1\2"), plain.index(b"PK\1\2")
    record = zip_directory._END_64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, begin)
    locator = zip_directory._LOCATOR.pack(b"PK\6\7", 0, end, 1)
    narrow = zip_directory._END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    wide = plain[:end] + record + locator + narrow
    (entry,) = parse(wide).entries
    assert values(wide, entry) == np.array([1, 2], "<f4").tobytes()
    for lie in (
        wide.replace(b"PK\6\6", b"PK\6\5"),
        wide.replace(locator, zip_directory._LOCATOR.pack(b"PK\6\7", 0, end - 1, 1)),
        wide.replace(narrow, zip_directory._END.pack(b"PK\5\6", 0, 0, 2, 2, 0xFFFFFFFF, 0xFFFFFFFF, 0)),
    ):
        with pytest.raises(InputError):
            parse(lie)


def test_wide_numbers_replace_those_that_do_not_fit():
    full = 0xFFFFFFFF
    extra = (
        b"\x55\x55\2\0ab" + b"\1\0\x10\0" + (1 << 40).to_bytes(8, "little") + (1 << 41).to_bytes(8, "little")
    )
    assert zip_directory._widen(extra, [full, 5, full]) == [1 << 40, 5, 1 << 41]
    assert zip_directory._widen(b"", [full, 5, full]) == [full, 5, full]
