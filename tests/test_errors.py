from __future__ import annotations

import pickle

import pytest

from hilm import errors
from hilm.errors import HeaderError, HilmError, NotACheckpoint

CLASSES = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, HilmError)]
CODES = {1, 2, 3, 4, 5}


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_has_an_exit_code_and_stands_in_the_drawn_tree(error):
    assert error.exit_code in CODES
    assert error.__name__ in errors.__doc__
    builtin = [base for base in error.__mro__ if base.__module__ == "builtins"]
    assert error is HilmError or builtin[0] is not Exception


def test_messages_hints_and_codes_survive_another_process():
    error = HeaderError("overlap", "two tensors share bytes", hint="fetch it again")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.hint, copy.code) == (
        HeaderError,
        str(error),
        "fetch it again",
        "overlap",
    )
    assert str(copy) == "two tensors share bytes [overlap]"


def test_a_class_may_know_what_to_do():
    assert NotACheckpoint("nothing here").hint == NotACheckpoint.default_hint
    assert NotACheckpoint("nothing here", hint="look there").hint == "look there"
