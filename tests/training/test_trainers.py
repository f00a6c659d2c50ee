from __future__ import annotations

from pathlib import Path

import pytest

from hilm.errors import UsageError
from hilm.training.methods import METHODS
from hilm.training.record import Run
from hilm.training.trainers import settings


@pytest.mark.parametrize(
    ("key", "said"),
    [("bf16", "is set by hilm"), ("bata", "there is no key method.bata"), ("seed", "set by hilm")],
)
def test_keys_of_the_method_are_checked(configure, key, said):
    config = configure("dpo", method={key: 1})
    run = Run(Path(config.out))
    run.start("dpo", config, {})
    with pytest.raises(UsageError, match=said):
        settings(run, METHODS["dpo"])
