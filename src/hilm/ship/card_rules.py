"""The rules of a model card that concern its fields and its text, each by itself."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import HilmError
from hilm.ship import front_matter
from hilm.ship.card_facts import digest, read_json
from hilm.ship.identifiers import HEADS, LANGUAGES, TASKS
from hilm.ship.model_card import RELATIONS
from hilm.ship.references import is_repository

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

CARD = "README.md"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
Found = tuple[str, ...]
"""What was found (after ``~``: a mere doubt), what to do; words that show the line, if not the rule's."""


@dataclass(slots=True)
class Subject:
    """A folder with its card, read once."""

    folder: Path
    repo_id: str
    files: Mapping[str, Path]
    licenses: frozenset[str]
    text: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    body: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> Collection[str]:
        """Paths that would be published."""
        return self.files.keys()

    def listed(self, name: str) -> list[Any]:
        """A field as a list, whether the card gives one value or several."""
        value = self.fields.get(name)
        return value if isinstance(value, list) else [] if value is None else [value]

    @property
    def bases(self) -> list[Any]:
        """Base models."""
        return self.listed("base_model")


def _license(subject: Subject) -> Iterator[Found]:
    if not subject.fields.get("license"):
        yield "~no licence is given", "say under what licence it may be used", ""
    explained = {"license_name", "license_link"} <= subject.fields.keys() or any(
        name.upper().startswith("LICENSE") for name in subject.names
    )
    for name in subject.listed("license"):
        if name not in subject.licenses:
            yield f"license is {name!r}", "use an identifier of the Hub, or other"
        elif name == "unknown":
            yield "~the licence is unknown", "say under what licence it may be used"
        elif name == "other" and not explained:
            yield "licence other is not explained", "give license_name and license_link, or LICENSE"


def _base(subject: Subject) -> Iterator[Found]:
    for base in subject.bases:
        if not is_repository(base, owner=False):
            yield f"base_model is {base!r}", "write owner/name of the repository"
        elif base == subject.repo_id:
            yield "base_model is the model itself", "name what it was made from, or leave it out"
        elif "/" not in base:
            yield f"~base_model {base!r} has no owner", "write owner/name"


def _relation(subject: Subject) -> Iterator[Found]:
    relation = subject.fields.get("base_model_relation")
    if relation is None:
        return
    quantized = "quantization_config" in subject.config or any(n.endswith(".gguf") for n in subject.names)
    expected = "adapter" if subject.adapter else "quantized" if quantized else "finetune"
    expected = "merge" if len(subject.bases) > 1 else expected
    if relation not in RELATIONS:
        yield f"base_model_relation is {relation!r}", f"use one of {', '.join(RELATIONS)}"
    elif not subject.bases:
        yield "a base_model_relation without a base_model", "name the base model"
    elif relation != expected:
        yield f"base_model_relation is {relation}, but the files say {expected}", f"write {expected}"


def _task(subject: Subject) -> Iterator[Found]:
    task = subject.fields.get("pipeline_tag")
    if task is None:
        return
    if task not in TASKS:
        yield f"pipeline_tag {task!r} is not known", "use a task of the Hub"
        return
    for name in subject.config.get("architectures") or []:
        fitting = next((tasks for head, tasks in HEADS.items() if str(name).endswith(head)), (task,))
        if task not in fitting:
            yield f"pipeline_tag is {task}, but {name} is for {fitting[0]}", f"write {fitting[0]}"


def _library(subject: Subject) -> Iterator[Found]:
    library = subject.fields.get("library_name")
    remote = "sentence-transformers" if "modules.json" in subject.names else "transformers"
    expected = "peft" if subject.adapter else remote if subject.config.get("architectures") else library
    if library not in {None, expected}:
        yield f"library_name is {library!r}, but the files are of {expected}", f"write {expected}"


def _language(subject: Subject) -> Iterator[Found]:
    for code in subject.listed("language"):
        if code is False:
            yield "language no was read as false", "write 'no' in quotes"
        elif code not in LANGUAGES and not re.fullmatch(r"[a-z]{3}", str(code)):
            yield f"language {code!r} is no ISO 639 code", "write a code such as en"


def _datasets(subject: Subject) -> Iterator[Found]:
    for name in subject.listed("datasets"):
        if not is_repository(name, owner=False):
            yield f"dataset {name!r} is no id on the Hub", "write owner/name"


def _tags(subject: Subject) -> Iterator[Found]:
    given = subject.fields.get("tags", [])
    if not isinstance(given, list):
        yield "tags are no list", "write one tag a line, each behind a dash"
        return
    for tag in given:
        if not isinstance(tag, str):
            yield f"tag {tag!r} is no text", "put it in quotes"
        elif re.match(r"base_model:(\w+:)?(/|\.|~)", tag):
            yield f"tag {tag!r} holds a path", "remove the tag", tag


def _results(subject: Subject) -> Iterator[Found]:
    try:
        for model in subject.fields.get("model-index") or ():
            if not model.get("name"):
                yield "model-index without a name", "give name"
            for result in model["results"]:
                wanted = [result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]]
                for metric in result["metrics"]:
                    value = metric["value"]
                    number = isinstance(value, int | float) and not isinstance(value, bool)
                    if not number or not math.isfinite(value):
                        yield f"metric {metric['type']} is {value!r}, no finite number", "write the figure"
                    wanted.append(metric["type"])
                if not all(isinstance(word, str) and word for word in wanted):
                    yield "model-index with an empty name", "fill task.type, dataset.type, .name, metric.type"
    except (KeyError, TypeError, AttributeError) as error:
        fix = "give name, results: task.type, dataset.type and .name, metrics"
        yield f"model-index lacks {error}", fix


def _sources(subject: Subject) -> Iterator[Found]:
    reports = {digest(path) for name, path in subject.files.items() if name.endswith(".json")}
    models = [model for model in subject.listed("model-index") if isinstance(model, dict)]
    for result in [r for model in models if isinstance(model.get("results"), list) for r in model["results"]]:
        source = result.get("source") if isinstance(result, dict) else None
        name = str(source.get("name")) if isinstance(source, dict) else ""
        if name != "self-reported" and name not in reports:
            fix = "publish the report, or say source: name: self-reported"
            yield "a metric has no report beside it", fix


_PLACEHOLDERS = ("[More Information Needed]", "Model Card for Model ID", "TODO", "<!--")


def _placeholders(subject: Subject) -> Iterator[Found]:
    for words in _PLACEHOLDERS:
        if words in subject.text:
            yield f"{words!r} was left in the card", "write what is known, and leave out the rest", words


def _adapter_base(subject: Subject) -> Iterator[Found]:
    base = subject.adapter.get("base_model_name_or_path")
    if subject.adapter and base not in subject.bases:
        yield f"the adapter was made for {base!r}, not for base_model", "name the same model in both"


def _files(subject: Subject) -> Iterator[Found]:
    names = set(subject.names)
    shards = {n for n in names if re.fullmatch(r".*-\d{5}-of-\d{5}\.safetensors", n)}
    for index in [n for n in names if n.endswith(".safetensors.index.json")]:
        document = read_json(subject.files[index])
        place = index.rpartition("/")[0]
        mapped = {f"{place}/{n}".lstrip("/") for n in map(str, (document.get("weight_map") or {}).values())}
        if missing := sorted(mapped - names):
            yield f"{index} names {missing[0]}, which is not there", "add the missing files"
        if orphans := sorted({n for n in shards if n.rpartition("/")[0] == place} - mapped):
            yield f"{orphans[0]} is not in {index}", "remove it, or add it to the index"
        total = (document.get("metadata") or {}).get("total_size")
        stored = sum(tensor["bytes"] for tensor in subject.weights.get("tensors", ()))
        if total is not None and stored and total != stored:
            yield f"{index} states {total:,} bytes, the shards hold {stored:,}", "write the index again"
    if shards and not any(n.endswith(".index.json") for n in names):
        yield f"{min(shards)} has no index", "add model.safetensors.index.json"
    pickled = sorted(n for n in names if Path(n).suffix in PICKLES)
    if pickled and any(n.endswith(".safetensors") for n in names):
        yield f"{pickled[0]} is a pickle beside safetensors", "remove it"


_COUNTED = re.compile(
    r"(?<![\w.,])(\d[\d,]*(?:\.\d+)?) ?([KMB])?(?: (thousand|million|billion))? parameters\b"
)
_STORED = re.compile(r"(?:stored as|[Tt]ensor type:?|[Dd]type:?)\W{0,4}((?:[A-Z]+\d\w*(?:, )?)+)")
_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "t": 1e3, "m": 1e6, "b": 1e9, "": 1}


def _stated(subject: Subject) -> Iterator[Found]:
    if not subject.weights:
        return
    total = subject.weights["parameters"]
    for match in _COUNTED.finditer(subject.body):
        number, unit = float(match[1].replace(",", "")), match[2] or (match[3] or "")[:1]
        exact = not unit and number >= 1000
        if (exact and number != total) or (unit and abs(number * _UNITS[unit] - total) > 0.05 * total):
            doubt = "" if exact else "~"
            yield f"{doubt}the card says {match[0]}, the files hold {total:,}", "correct it", match[0]
    held = {tensor["dtype"] for tensor in subject.weights["tensors"]}
    for match in _STORED.finditer(subject.body):
        if set(match[1].strip(", ").split(", ")) != held:
            yield (
                f"the card says {match[0]}, the files hold {', '.join(sorted(held))}",
                "correct it",
                match[0],
            )


def _snippets(subject: Subject) -> Iterator[Found]:
    blocks = "\n".join(re.findall(r"^```[\w-]*\n(.*?)^```", subject.body, re.DOTALL | re.MULTILINE))
    loads = re.search(r"from_pretrained\(|pipeline\(|hilm pull|hf download|snapshot_download", blocks)
    if subject.repo_id and loads and subject.repo_id not in blocks:
        yield f"no snippet names {subject.repo_id}", "load the model by the id it will have", loads[0]
    for link in re.findall(r"\]\((?!\w+:|#|/)([^)#\s]+)", subject.body):
        if link.removeprefix("./") not in subject.names:
            yield f"~the link to {link} leads nowhere", "publish the file, or remove the link", link


def _base_license(subject: Subject) -> Iterator[Found]:
    from hilm.weights.hub_files import locate_hub  # noqa: PLC0415 - only cards with a base need it

    for base in filter(is_repository, subject.bases):
        try:
            path = locate_hub(base, offline=True).files[CARD].path
            theirs = front_matter.split(path.read_text("utf-8"))[0].get("license") if path else None
        except (HilmError, KeyError, UnicodeDecodeError):
            continue  # its card is not on this machine
        if theirs and theirs != subject.fields.get("license"):
            yield f"{base} is under {theirs!r}", "make sure that the licence of the base allows yours"


RULES: tuple[tuple[str, str, str, Callable[[Subject], Iterator[Found]]], ...] = (
    ("C02", "error", "license", _license),
    ("C03", "error", "base_model", _base),
    ("C04", "error", "base_model_relation", _relation),
    ("C05", "error", "pipeline_tag", _task),
    ("C06", "error", "library_name", _library),
    ("C07", "warning", "language", _language),
    ("C08", "error", "datasets", _datasets),
    ("C09", "error", "tags", _tags),
    ("C10", "error", "model-index", _results),
    ("C11", "warning", "metrics", _sources),
    ("C12", "error", "", _placeholders),
    ("C15", "error", "base_model", _adapter_base),
    ("C16", "error", "", _files),
    ("C18", "error", "", _stated),
    ("C19", "error", "", _snippets),
    ("C20", "warning", "license", _base_license),
)
"""Name, level, words that show the line, and what finds the faults."""
