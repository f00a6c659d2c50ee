"""Names and texts: what a repository can be called, what no published file may hold."""

from __future__ import annotations

import re

_REPOSITORY = re.compile(
    r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}\w)?(/[A-Za-z0-9_](?:[\w.-]{0,94}\w)?)?", re.ASCII
)
SECRET = re.compile(
    r"hf_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,}|sk-[A-Za-z0-9_-]{24,}"
    r"|AIza[\w-]{35}|xox[abprs]-[\w-]{10,}|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
)
"""Tokens of the Hub and of clouds, and headers of private keys."""

ABSOLUTE = re.compile(
    r"(?<![\w./:@-])/(?:home|root|Users|mnt|tmp|var|opt|content|workspace|kaggle|scratch|data|gpfs|nfs|srv|work)/[\w.~-]+"
    r"|(?<!\w)[A-Za-z]:\\[\w\\.~-]+|\bfile:/+\S+"
)
"""Paths that mean something on one machine only."""


def is_repository(name: object, *, owner: bool = True) -> bool:
    """Whether something can be the name of a repository; with an owner before it, unless that is waived."""
    match = _REPOSITORY.fullmatch(name) if isinstance(name, str) else None
    return bool(match and (match[1] or not owner))
