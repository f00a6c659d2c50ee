from __future__ import annotations

import re

from hilm.ship import hub
from tests.hub_server import GOOD


def test_every_token_is_blanked_out():
    text = hub.redact(f"Bearer abc {GOOD} and secret at http://x/y?X-Amz-Signature=1 'z'", "secret")
    assert not re.search(r"abc|hf_good|secret|Amz", text)
    assert "http://x/y" in text
