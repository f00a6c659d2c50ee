"""Every model of an organisation on the Hub, remembered by its fingerprint; weights are read, not kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hilm.errors import HilmError, NotFound
from hilm.ship.hub import attempt, client
from hilm.store import Store
from hilm.store.reading import no_progress
from hilm.weights.hub_files import locate_hub
from hilm.weights.weight_files import FORMATS, suffix_of

if TYPE_CHECKING:
    from hilm.store.reading import Progress

JOBS = 2
"""Models read at a time, unless asked otherwise: the Hub serves others too."""


def list_models(organisation: str, token: str | None = None) -> list[str]:
    """Ids of an organisation's or user's models, sorted; page by page.

    Raises:
        NotFound: It has none that the token may see.
        OfflineError: ``HF_HUB_OFFLINE`` is set.
        NetworkError: The Hub does not answer.
    """
    api = client(token)
    ids = attempt(organisation, lambda: sorted(model.id for model in api.list_models(author=organisation)))
    if not ids:
        raise NotFound(f"{organisation} has no models on the Hub")
    return ids


def index_organisation(
    organisation: str,
    *,
    store: Store | None = None,
    budget: int | None = None,
    jobs: int | None = None,
    token: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Catalogue the fingerprints of an organisation's models; what is known already is not read again.

    Args:
        organisation: Or a user.
        store: The default one when None.
        budget: Bytes of weights to read at most; further models are left for the next run.
        jobs: Models read at a time.
        token: To list with; reading uses ``HF_TOKEN`` or the stored login.
        progress: Called with models done, models in all, and a name.

    Returns:
        What ``Store.index`` returns, and ``listed`` (models there are), ``left`` (ids), ``bytes`` planned.

    Raises:
        NetworkError: As :func:`list_models`.
    """
    store = store or Store()
    ids = list_models(organisation, token)
    rows = store.catalog.models() if store.exists else []
    known = {str(row["uri"]).removeprefix("hf://").partition("@")[0] for row in rows}
    chosen, left, planned = [], [], 0
    for name in ids:
        size = 0 if budget is None or name in known else _size(name, token)
        if budget is not None and planned + size > budget:
            left.append(name)
        else:
            planned += size
            chosen.append(name)
    found: dict[str, Any] = {"indexed": [], "skipped": [], "failed": []}
    if chosen:
        found = store.index(chosen, jobs=jobs or JOBS, progress=progress)
    return found | {"listed": len(ids), "left": left, "bytes": planned}


def _size(repo_id: str, token: str | None) -> int:
    """Bytes of a repository's weight files; 0 for one that cannot be read, which indexing will explain."""
    try:
        files = locate_hub(repo_id, token=token).files.values()
    except HilmError:
        return 0
    return sum(file.size for file in files if suffix_of(file.name) in FORMATS)
