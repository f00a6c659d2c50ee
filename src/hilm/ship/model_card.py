"""A model card from facts: what is not known is left out, what was measured names its report."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hilm.ship import front_matter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

RELATIONS = ("finetune", "adapter", "quantized", "merge")
UNDOCUMENTED = "Not documented by the author."


@dataclass(frozen=True, slots=True)
class Metric:
    """One evaluated figure.

    Attributes:
        task: Pipeline tag of the task.
        dataset: Hub id of the data set.
        type: Name of the metric, such as ``accuracy``.
        value: The figure.
        source: ``sha256:…`` of the report it is from; empty for what the author only says.
    """

    task: str
    dataset: str
    type: str
    value: float
    source: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One verification: what was compared, the figure, its limit, and the verdict or relation."""

    what: str
    value: float
    limit: float | None
    verdict: str


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Everything a card says.

    Attributes:
        repo_id: ``owner/name`` of the repository the card is for.
        license: Identifier, as the Hub spells it.
        license_name: Of a licence called ``other``; with ``license_link``.
        base_model: Hub ids of what it was made from.
        relation: One of :data:`RELATIONS`, where there is a base.
        library: ``transformers``, ``peft`` or another.
        task: Pipeline tag.
        architecture: Class that loads it.
        language, datasets, tags: Of the front matter.
        description, intended_use, limitations: The author's words.
        roles: Layer type → parameters, of the weight files.
        dtypes: Names of the types that weights are stored in.
        training: Name → value: method, settings, data, versions.
        metrics: Evaluated figures.
        checks: Parity, export and lineage verdicts.
        command: Command line that makes the model again.
        run: ``sha256:…`` of the run's manifest.
        remote_code: Whether loading runs code of the repository.
    """

    repo_id: str
    license: str = ""
    license_name: str = ""
    license_link: str = ""
    base_model: tuple[str, ...] = ()
    relation: str = ""
    library: str = ""
    task: str = ""
    architecture: str = ""
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    description: str = ""
    intended_use: str = ""
    limitations: str = ""
    roles: Mapping[str, int] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ()
    training: Mapping[str, object] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    checks: tuple[Check, ...] = ()
    command: str = ""
    run: str = ""
    remote_code: bool = False


def build(facts: CardFacts) -> str:
    """Write the card: sorted front matter, then a section per kind of fact. Same facts, same bytes."""
    sections = [f"# {facts.repo_id.rpartition('/')[2]}", facts.description.strip()]
    for title, text in _sections(facts):
        if text:
            sections.append(f"## {title}\n\n{text}")
    return front_matter.join(_front(facts), "\n\n".join(filter(None, sections)))


def _front(facts: CardFacts) -> dict[str, Any]:
    base = list(facts.base_model)
    fields: dict[str, Any] = {
        "license": facts.license,
        "license_name": facts.license_name,
        "license_link": facts.license_link,
        "base_model": base[0] if len(base) == 1 else base,
        "base_model_relation": facts.relation,
        "library_name": facts.library,
        "pipeline_tag": facts.task,
        "language": list(facts.language),
        "datasets": sorted(facts.datasets),
        "tags": sorted(set(facts.tags)),
    }
    if facts.metrics:
        name = facts.repo_id.rpartition("/")[2]
        fields["model-index"] = [{"name": name, "results": [_result(metric) for metric in facts.metrics]}]
    return {key: value for key, value in fields.items() if value}


def _result(metric: Metric) -> dict[str, Any]:
    return {
        "task": {"type": metric.task},
        "dataset": {"type": metric.dataset, "name": metric.dataset},
        "metrics": [{"type": metric.type, "value": metric.value, "verified": False}],
        "source": {
            "name": metric.source or "self-reported",
            "url": f"https://huggingface.co/{metric.dataset}",
        },
    }


def _sections(facts: CardFacts) -> Iterator[tuple[str, str]]:
    total = sum(facts.roles.values())
    yield "Use", _snippet(facts)
    yield "Intended use", facts.intended_use.strip()
    bases = ", ".join(f"[{base}](https://huggingface.co/{base})" for base in facts.base_model)
    yield "Lineage", f"Made from {bases} ({facts.relation})." if bases else ""
    yield "Training", _table(("setting", "value"), [(k, _plain(v)) for k, v in facts.training.items()])
    rows = [(m.task, m.dataset, m.type, _plain(m.value), m.source or "self-reported") for m in facts.metrics]
    yield "Evaluation", _table(("task", "data set", "metric", "value", "report"), rows)
    checks = [
        (c.what, _plain(c.value), "" if c.limit is None else _plain(c.limit), c.verdict) for c in facts.checks
    ]
    yield "Verification", _table(("what", "measured", "limit", "verdict"), checks)
    if total:
        stored = f"{total:,} parameters, stored as {', '.join(sorted(facts.dtypes))}.\n\n"
        yield (
            "Parameters",
            stored + _table(("layer type", "count"), [(r, f"{n:,}") for r, n in facts.roles.items()]),
        )
    yield "Limitations", facts.limitations.strip() or UNDOCUMENTED
    digest = f"\n\nManifest of the run: `{facts.run}`" if facts.run else ""
    yield "Reproduce", f"```sh\n{facts.command}\n```{digest}" if facts.command else digest.strip()


def _snippet(facts: CardFacts) -> str:
    """Code that loads the model, or the command that fetches it."""
    trust = ", trust_remote_code=True" if facts.remote_code else ""
    if facts.library == "peft" and facts.base_model:
        code = f'from peft import AutoPeftModel\n\nmodel = AutoPeftModel.from_pretrained("{facts.repo_id}")'
    elif facts.library == "transformers" and facts.architecture:
        auto = next((a for suffix, a in _AUTO.items() if facts.architecture.endswith(suffix)), "AutoModel")
        code = f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("{facts.repo_id}"{trust})'
    else:
        return f"```sh\nhilm pull {facts.repo_id}\n```"
    return f"```python\n{code}\n```"


_AUTO = {
    f"For{head}": f"AutoModelFor{head}"
    for head in (
        "CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM",
        "MultipleChoice", "ImageClassification", "AudioClassification",
    )
}  # fmt: skip
_AUTO["ForConditionalGeneration"] = "AutoModelForSeq2SeqLM"


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def diff(a: str, b: str) -> dict[str, tuple[object, object]]:
    """Fields and sections that differ between two cards: name → (of a, of b), None where there is none.

    Raises:
        InputError: A card has no front matter that can be read.
    """
    first, second = map(_parts, (a, b))
    names = [*first, *(name for name in second if name not in first)]
    return {n: (first.get(n), second.get(n)) for n in names if first.get(n) != second.get(n)}


def _parts(text: str) -> dict[str, object]:
    fields, body = front_matter.split(text)
    pieces = re.split(r"^##? +(.+)$", body, flags=re.MULTILINE)
    return fields | {
        f"# {title.strip()}": text.strip() for title, text in zip(pieces[1::2], pieces[2::2], strict=True)
    }
