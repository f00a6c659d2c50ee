"""Whether the base model that a card declares is what the weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, UnknownModel
from hilm.ship import front_matter
from hilm.ship.card_rules import CARD
from hilm.store import Store, diff

if TYPE_CHECKING:
    from os import PathLike

KIN = frozenset(
    {"identical", "subset", "dtype-cast", "quantized", "pruned", "fine-tune", "permuted", "resized", "merge"}
)


def check_base(folder: str | PathLike[str], store: str | PathLike[str] | None = None) -> list[dict[str, Any]]:
    """Compare a model with each base that its card declares, where the store has that.

    Args:
        folder: Of the model; or its README.md.
        store: Folder of a store; the default one when None.

    Returns:
        Per base: ``base``, ``agrees`` (None: not known), ``relation``, ``p_value``, ``sentence``.

    Raises:
        InputError: There is no card, or no checkpoint.
    """
    root = Path(folder).parent if Path(folder).is_file() else Path(folder)
    if not (root / CARD).is_file():
        raise InputError(f"{root} has no README.md")
    base = front_matter.split((root / CARD).read_text("utf-8", errors="replace"))[0].get("base_model") or []
    return [_compare(root, str(name), Store(store)) for name in (base if isinstance(base, list) else [base])]


def _compare(folder: Path, base: str, store: Store) -> dict[str, Any]:
    unknown = {"base": base, "agrees": None, "relation": None, "p_value": None}
    if (folder / "adapter_config.json").is_file():
        return unknown | {"sentence": "an unmerged adapter does not tell what it was made for"}
    try:
        name = _find(base, store)
    except UnknownModel as error:
        return unknown | {"sentence": error.message}
    found = diff(folder, name, store=store)
    agrees = True if found["relation"] in KIN else False if found["relation"] == "independent" else None
    return {"base": base, "agrees": agrees, **{k: found[k] for k in ("relation", "p_value", "sentence")}}


def _find(base: str, store: Store) -> str:
    """Name of a base in the store: its own, that without the owner, or that of what was read from the Hub.

    Raises:
        UnknownModel: The store does not have it.
    """
    rows = store.catalog.models() if store.exists else []
    names = [str(row["name"]) for row in rows]
    read = [
        str(row["name"]) for row in rows if f"{row['uri']}@".startswith((f"hf://{base}@", f"hf://{base}/"))
    ]
    for name in (base, *read, base.rpartition("/")[2]):
        if name in names:
            return name
    raise UnknownModel(f"the store does not have {base}", hint=f"hilm index {base}")
