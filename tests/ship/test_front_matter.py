from __future__ import annotations

import pytest

from hilm import errors
from hilm.ship import front_matter


@pytest.mark.parametrize(
    "front", ["", "a: 1\na: 2", "[1]", "a: &x 1\nb: *x", "a: [" * 3000, "1: 2", "a: !!python/name:os.system"]
)
def test_front_matter_that_is_refused(front):
    with pytest.raises(errors.InputError):
        front_matter.split(f"---\n{front}\n---\n")
    with pytest.raises(errors.InputError):
        front_matter.split("no front matter")
