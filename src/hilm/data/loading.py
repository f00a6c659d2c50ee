"""Read rows from csv, tsv, json, jsonl, parquet or text files, or from the Hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.data.rows import columns_of, readable
from hilm.data.steps import apply
from hilm.errors import InputError, NetworkError, UnsupportedFormat
from hilm.extras import require
from hilm.weights.folder import is_hub_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    Dataset = Any

FORMATS: Mapping[str, str] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
"""Suffix → format; other files are told by their first bytes."""

FORMER_NAMES: Mapping[str, str] = {
    "ag_news": "fancyzhxy/ag_news",
    "glue": "nyu-mll/glue",
    "imdb": "stanfordnlp/imdb",
    "squad": "rajpurkar/squad",
    "wikitext": "Salesforce/wikitext",
}
"""Names of before the Hub had organisations → the id of today."""

_FORMER_CONFIGS = {("Salesforce/wikitext", "wikitext-2"): "wikitext-2-raw-v1"}


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Where rows come from and what is done to them.

    Args:
        path: A file, several of one format, a folder of such, or a Hub id.
        name: Configuration of a data set on the Hub.
        split: Of it, such as ``train`` or ``train[:100]``; files are one split, ``train``.
        eval: The rows to evaluate on: a file or another split.
        columns: What the method calls a column → what the data call it.
        map: Steps of :mod:`hilm.data.steps`, or functions of a row.
        filter: The same.
        streaming: Read rows as they are used; there is no length.
        sample_by: One row per ``line`` of a text file, or per ``document``.
    """

    path: str | tuple[str, ...]
    name: str | None = None
    split: str = "train"
    eval: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    map: tuple[Any, ...] = ()
    filter: tuple[Any, ...] = ()
    streaming: bool = False
    sample_by: str = "line"


def load_data(spec: DataConfig | str) -> Dataset:
    """Read rows; columns are renamed first, then map and filter run.

    Args:
        spec: Where from; a string is its path alone.

    Returns:
        A ``datasets.Dataset``; with ``streaming`` an ``IterableDataset``.

    Raises:
        InputError: A file is missing or not in its format; a column, split or configuration does not exist.
        UsageError: A step is unknown.
        MissingExtra: datasets is not installed.
        NetworkError: The Hub does not give the data set; OfflineError where it may not be asked.
    """
    config = spec if isinstance(spec, DataConfig) else DataConfig(spec)
    datasets = require("datasets")
    where = _describe(config)
    shown = where.get("data_files", [where["path"]])[0]
    with readable(shown):
        dataset = datasets.load_dataset(**where, split=config.split, streaming=config.streaming)
        wrong = [old for old in config.columns.values() if old not in columns_of(dataset)]
        if wrong:
            raise InputError(
                f"{shown} has no column {wrong[0]!r}", hint=f"it has {', '.join(columns_of(dataset))}"
            )
        renamed = {old: new for new, old in config.columns.items() if old != new}
        return apply(dataset.rename_columns(renamed), config.map, config.filter)


def load_eval(config: DataConfig) -> Dataset | None:
    """Read the rows to evaluate on, shaped as those to train on; None where there are none."""
    if config.eval is None:
        return None
    if Path(config.eval).exists():
        return load_data(replace(config, path=config.eval, split="train", eval=None))
    return load_data(replace(config, split=config.eval, eval=None))


def source_digests(config: DataConfig) -> list[dict[str, str]]:
    """Say what the rows were read from.

    Returns:
        ``{"path", "sha256"}`` of each file, the name without its folder; or ``{"id", "commit"}``.

    Raises:
        NetworkError: The Hub does not tell the commit.
    """
    where = _describe(config)
    if "data_files" in where:
        return [{"path": path.name, "sha256": _sha256(path)} for path in map(Path, where["data_files"])]
    try:
        commit = require("huggingface_hub").HfApi().dataset_info(where["path"]).sha
    except OSError as error:  # every error of the Hub's client is one
        raise NetworkError(f"{where['path']}: {error}", hint="the commit is asked from the Hub") from error
    return [{"id": where["path"], "commit": commit}]


def _describe(config: DataConfig) -> dict[str, Any]:
    """Return the arguments of ``load_dataset`` for these files or this Hub id."""
    given = [config.path] if isinstance(config.path, str) else list(config.path)
    if len(given) == 1 and not Path(given[0]).exists() and Path(given[0]).suffix not in FORMATS:
        path = FORMER_NAMES.get(given[0], given[0])
        if is_hub_id(path):
            return {"path": path, "name": _FORMER_CONFIGS.get((path, str(config.name)), config.name)}
    files = [file for path in given for file in _files(Path(path))]
    formats = {file: _format(file) for file in files}
    if len(set(formats.values())) > 1:
        listed = ", ".join(sorted(set(formats.values())))
        raise InputError(f"files of several formats: {listed}", hint="give files of one format")
    builder = formats[files[0]]
    where: dict[str, Any] = {"path": builder, "data_files": [str(file) for file in files]}
    if builder == "tsv":
        where |= {"path": "csv", "sep": "\t"}
    if builder == "text":
        where["sample_by"] = config.sample_by
    return where


def _files(path: Path) -> list[Path]:
    """Return a file, or those of a folder that have a known suffix.

    Raises:
        InputError: There is none.
    """
    if not path.exists():
        raise InputError(f"there is no file {path}", hint="give a file, or organisation/name for the Hub")
    files = sorted(f for f in path.iterdir() if f.suffix in FORMATS) if path.is_dir() else [path]
    if not files or not all(file.stat().st_size for file in files):
        raise InputError(f"{path} is empty", hint="give a file with rows")
    return files


def _format(path: Path) -> str:
    """Tell a file's format by its suffix, else by its first bytes.

    Raises:
        UnsupportedFormat: It is none of these.
    """
    if path.suffix.lower() in FORMATS:
        return FORMATS[path.suffix.lower()]
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.lstrip()[:1] in {b"{", b"["}:
        return "json"
    if b"\0" in start:
        raise UnsupportedFormat(f"{path} is none of csv, tsv, json, jsonl, parquet, text")
    return "text"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
