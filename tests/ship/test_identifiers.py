from __future__ import annotations

from hilm.ship.identifiers import ADAPTER_TASKS, HEADS, LANGUAGES, LICENSES, TASKS


def test_what_files_suggest_is_what_cards_may_say():
    assert {*ADAPTER_TASKS.values(), *(task for tasks in HEADS.values() for task in tasks)} <= TASKS


def test_identifiers_are_spelled_as_the_hub_does():
    assert {"apache-2.0", "mit", "other", "unknown"} <= LICENSES
    assert {"en", "no", "multilingual"} <= LANGUAGES
    assert all(name == name.lower().strip() for name in LICENSES | TASKS | LANGUAGES)
