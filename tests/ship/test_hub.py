from __future__ import annotations

import re

import pytest

from hilm import errors
from hilm.ship import hub, push
from tests.hub_server import GOOD
from tests.ship.cards import good
from tests.xet_store import XetStore


def test_every_token_is_blanked_out():
    text = hub.redact(f"Bearer abc {GOOD} and secret at http://x/y?X-Amz-Signature=1 'z'", "secret")
    assert not re.search(r"abc|hf_good|secret|Amz", text)
    assert "http://x/y" in text


@pytest.mark.parametrize("status", [401, 403])
def test_xet_may_refuse(online, tmp_path, monkeypatch, status):
    online.xet = XetStore(tmp_path / "chunks")
    online.reach(monkeypatch, tmp_path / "home", GOOD)
    online.fail("xet-write-token", status=status, times=9)
    folder = good(tmp_path / "it", "someone/it")
    with pytest.raises(errors.AuthRequired, match=str(status)) as caught:
        push(folder, "someone/it")
    assert GOOD not in repr(caught.value)
    online.faults.clear()
    assert push(folder, "someone/it")["pushed"] == 3
