"""What this machine has: devices, memory, packages, and which of these do not fit together."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import psutil

from hilm import __version__
from hilm.extras import choose_device, require
from hilm.weights.hub_files import authorization, cache_folder, is_true

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from packaging.requirements import Requirement

TRAPS = {
    "optimum": "optimum's exporters hold transformers below 4.58; hilm export does not need it",
    "torch-tensorrt": "torch-tensorrt wants its own version of torch; check that it is the pinned one",
    "pytorch-transformers": "a predecessor of transformers: uninstall it",
    "apex": "apex is older than torch.amp: uninstall it",
}
"""Packages that break others although their declared requirements are met."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where models run: a device as torch names it, how many, and bytes free on one of them."""

    device: str
    devices: int
    memory: int


def look_around() -> Machine:
    """Return the device torch would take, and its free memory; the CPU's where torch is not installed."""
    device = choose_device() if find_spec("torch") else "cpu"
    if device == "cuda":
        cuda = require("torch").cuda
        return Machine(device, cuda.device_count(), cuda.mem_get_info()[0])
    return Machine(device, 1, psutil.virtual_memory().available)


def examine(storage_dir: Path, *, offline: bool = False) -> dict[str, Any]:
    """Say what is installed and what does not fit together.

    Args:
        storage_dir: The store.
        offline: Do not ask whether the Hub can be reached.

    Returns:
        ``ok``, ``hilm``, ``python``, ``platform``, ``machine``, ``packages`` (``name``, ``version``,
        ``wanted``, ``extra``, ``ok``), ``caches`` (bytes of the Hub's cache and of the store), ``hub``
        (``endpoint``, ``reachable`` or None, ``token``), ``problems``.
    """
    packages = _packages()
    problems = [f"{p['name']} {p['version']} is not {p['wanted']}" for p in packages if p["ok"] is False]
    problems += _unmet(p["name"] for p in packages if p["version"])
    problems += [text for name, text in TRAPS.items() if _version(name)]
    machine, endpoint = look_around(), os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    asked = not (offline or is_true("HF_HUB_OFFLINE"))
    return {
        "ok": not problems,
        "hilm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": {
            "device": machine.device,
            "devices": machine.devices,
            "memory": machine.memory,
            "cores": psutil.cpu_count(),
        },
        "packages": packages,
        "caches": {"hub": _bytes(cache_folder()), "store": _bytes(storage_dir)},
        "hub": {
            "endpoint": endpoint,
            "reachable": _reach(endpoint) if asked else None,
            "token": bool(authorization(None)),
        },
        "problems": problems,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements(name: str) -> list[Requirement]:
    """Return what a package declares it needs; nothing where it is not installed as one."""
    parse = require("packaging.requirements").Requirement
    try:
        return [parse(line) for line in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:
        return []


def _packages() -> list[dict[str, Any]]:
    """List hilm's own requirements with the versions installed."""
    rows = []
    for need in _requirements("hilm"):
        extra = str(need.marker).partition('"')[2].partition('"')[0] if need.marker else ""
        if need.name == "hilm" or extra in {"dev", "docs"}:
            continue
        version = _version(need.name)
        fits = None if version is None and extra else bool(version and need.specifier.contains(version, True))
        rows.append(
            {"name": need.name, "version": version, "wanted": str(need.specifier), "extra": extra, "ok": fits}
        )
    return rows


def _unmet(names: Iterable[str]) -> list[str]:
    """List what installed packages need and do not find in that version."""
    unmet = []
    for name in names:
        for need in _requirements(name):
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            version = _version(need.name)
            if version is None or not need.specifier.contains(version, prereleases=True):
                unmet.append(f"{name} needs {need.name}{need.specifier}; there is {version or 'none'}")
    return unmet


def _bytes(folder: Path) -> int:
    """Return the bytes of the files in a folder; links, which a cache is full of, not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _reach(endpoint: str) -> bool:
    session = require("huggingface_hub.utils").get_session()
    try:
        answer = session.head(f"{endpoint}/api/models", params={"limit": 1}, timeout=5)
    except (OSError, require("httpx2").HTTPError):
        return False
    return bool(answer.status_code < 500)
