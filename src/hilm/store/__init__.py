"""The public verbs, over one store: a folder with a catalog and reels."""

from hilm.store.getting import get
from hilm.store.hub_cost import plan_hub
from hilm.store.memory_plan import plan
from hilm.store.reading import inspect, stream
from hilm.store.reels import decode, read_tensor, verify
from hilm.store.relations import diff
from hilm.store.reporting import report
from hilm.store.store import Store, encode, index, search

__all__ = [
    "Store",
    "decode",
    "diff",
    "encode",
    "get",
    "index",
    "inspect",
    "plan",
    "plan_hub",
    "read_tensor",
    "report",
    "search",
    "stream",
    "verify",
]
