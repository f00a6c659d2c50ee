"""The public verbs, over one store: a folder with a catalog and reels."""

from hilm.store.getting import get
from hilm.store.reading import inspect, stream
from hilm.store.reels import decode, read_tensor, verify
from hilm.store.relations import diff
from hilm.store.store import Store, encode, index, search

__all__ = [
    "Store",
    "decode",
    "diff",
    "encode",
    "get",
    "index",
    "inspect",
    "read_tensor",
    "search",
    "stream",
    "verify",
]
