"""The YAML between the first two ``---`` of a model card."""

from __future__ import annotations

import re
from typing import Any

import yaml

from hilm.errors import InputError

MAX_CARD = 4 << 20
MAX_FRONT = 256 << 10
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)


class _Loader(yaml.SafeLoader):
    """Plain data; neither aliases, which blow up, nor a key twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses an alias (*), which cards have no need of")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - yaml's signature
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"line {node.start_mark.line + 2}: the key {twice!r} is there twice")
        return super().construct_mapping(node, deep=deep)


def split(text: str) -> tuple[dict[str, Any], str]:
    """The fields of a card, and its body.

    Raises:
        InputError: The front matter is not a YAML mapping, has a key twice, or is too large.
    """
    match = _FRONT.match(text)
    if match is None:
        raise InputError("the card does not begin with front matter between two lines of ---")
    if len(match[1]) > MAX_FRONT:
        raise InputError(f"the front matter has more than {MAX_FRONT:,} characters")
    try:
        fields = yaml.load(match[1], _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        found = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the front matter is not YAML that cards may use: {found}") from None
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise InputError("the front matter is not a mapping of names to values")
    return fields, text[match.end() :]


def join(fields: dict[str, Any], body: str) -> str:
    """A card: sorted fields, then the body. The same content gives the same bytes."""
    front = yaml.safe_dump(fields, sort_keys=True, allow_unicode=True, default_flow_style=False, width=1000)
    return f"---\n{front}---\n\n{body.strip()}\n"
