"""A comparison for people and programs: text, JUnit XML, an HTML page with the worst tokens marked."""

from __future__ import annotations

import base64
import io
import math
from html import escape
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np

from hilm.extras import require
from hilm.parity.verdict import place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from hilm.parity.features import FeatureReport
    from hilm.parity.inputs import Item
    from hilm.parity.verdict import ParityReport, Stage

WIDEST = 640
COLOURS = {"pass": "#2a7", "fail": "#c33", "inherited": "#c90"}


def describe_divergence(report: ParityReport) -> str:
    """Write where both sides part, in one line."""
    found = report.first_divergence
    if found is None:
        local = [s.ratio for s in report.stages if s.mode == "local" and s.ratio is not None]
        if not local:
            return "no divergence seen; the floor was not measured"
        layers = len({s.stage for s in report.stages if s.stage.startswith("layer.") and "/" not in s.stage})
        return f"no divergence; {layers} layers at {min(local):.2f}-{max(local):.2f} x floor"
    text = f"first divergence: {found['stage']}" + (f" / {found['sub']}" if found.get("sub") else "")
    if found.get("ratio") is not None:
        text += f", ratio {found['ratio']:.3g} (bar {found['bar']:g}) in {found['precision']}"
    if found.get("token"):
        sample, t, y, x = found["token"]
        text += f", worst token of {found['input']} t={t} y={y} x={x}" + (
            f" sample={sample}" if sample else ""
        )
    text += f": {found['detail']}" if found.get("detail") else ""
    return text + (f"; inherited by {', '.join(found['inherited'])}" if found.get("inherited") else "")


def console(report: ParityReport) -> str:
    """Write a line per stage, but those that passed both ways once; the first divergence; the verdicts."""
    lines = [f"reference  {report.reference}", f"candidate  {report.candidate}", ""]
    if report.audit is not None:
        counts = ", ".join(f"{n} {word}" for word, n in sorted(report.audit.weights.items()) if n)
        lines += [f"weights    {counts or 'none'}", ""]
    fed = {(stage.input, stage.precision) for stage in report.stages if stage.mode == "local"}
    for stage in report.stages:
        known = stage.mode == "free" and stage.status == "pass" and (stage.input, stage.precision) in fed
        if stage.status != "shared" and not known:
            lines.append(_stage_line(stage))
    lines += ["", describe_divergence(report), *_verdicts(report), f"verdict: {report.verdict}"]
    return "\n".join(lines)


def _stage_line(stage: Stage) -> str:
    ratio = "" if stage.ratio is None else f"{stage.ratio:10.3g} x floor"
    cosine = f"  cosine {stage.figures['cosine_min']:.6f}" if stage.figures else ""
    token = f"  worst {tuple(stage.worst[0]['token'])}" if stage.worst and stage.status == "fail" else ""
    line = f"{stage.status:9} {stage.input}  {stage.stage:15} {stage.precision:8} {stage.mode:5}"
    return f"{line}{ratio}{cosine}{token}  {stage.detail}".rstrip()


def junit(report: ParityReport | FeatureReport) -> str:
    """Write JUnit XML: a suite per input, a case per stage, mode and precision."""
    root = ET.Element("testsuites", name="hilm parity")
    for name in dict.fromkeys(stage.input for stage in report.stages):
        stages = [stage for stage in report.stages if stage.input == name]
        failures = sum(stage.status == "fail" for stage in stages)
        suite = ET.SubElement(root, "testsuite", name=name, tests=str(len(stages)), failures=str(failures))
        for stage in stages:
            title = f"{stage.stage} {stage.mode} {stage.precision}".strip()
            case = ET.SubElement(suite, "testcase", classname=name, name=title)
            kind = {"fail": "failure", "not measured": "skipped"}.get(stage.status)
            if kind:
                ET.SubElement(case, kind, message=_metrics_line(stage))
    return ET.tostring(root, encoding="unicode", xml_declaration=True)


def _metrics_line(stage: Stage) -> str:
    parts = [stage.detail] if stage.detail else []
    parts += [] if stage.ratio is None else [f"ratio {stage.ratio:.4g} of {stage.bar:g}"]
    if figures := stage.figures:
        parts += [f"min cosine {figures['cosine_min']:.8f}", f"rel L2 {figures['rel_l2']:.4g}"]
    return ", ".join(parts)


STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:13px}
td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:left}
.pass{color:#186}.fail{color:#b22;font-weight:600}.inherited{color:#a60}h1 small{font-weight:400;color:#666}
figure{display:inline-block;margin:.5rem}svg{max-width:100%;height:auto}
svg g text{fill:#fff;stroke:#024;stroke-width:.6px;paint-order:stroke}
figcaption{font-size:13px;color:#555}"""


def page(report: ParityReport) -> str:
    """Write one HTML page without scripts or links: verdicts, charts, pictures, audit, all stages."""
    lines = [f"{report.reference} and {report.candidate}", describe_divergence(report), *_verdicts(report)]
    return _html(
        "Parity",
        report.verdict,
        *(f"<p>{escape(line)}</p>" for line in lines),
        *(f"<p class=inherited>{escape(warning)}</p>" for warning in report.warnings),
        *_charts(report),
        *(f"<h2>{escape(item.name)}</h2>{_pictures(item, report)}" for item in report.items),
        _audit_table(report),
        _stage_table(report.stages),
    )


def features_page(report: FeatureReport) -> str:
    """Write one HTML page of feature comparisons."""
    verdict = "pass" if report.ok else "fail"
    return _html("Features", verdict, f"<pre>{escape(report.text())}</pre>", _stage_table(report.stages))


def _html(title: str, verdict: str, *parts: str) -> str:
    head = f'<!doctype html><html lang=en><meta charset="utf-8"><title>hilm {title.lower()}</title>'
    heading = f"<h1>{title}: <span class={verdict}>{verdict}</span></h1>"
    return "\n".join([head, f"<style>{STYLE}</style>", heading, *(part for part in parts if part)])


def _verdicts(report: ParityReport) -> list[str]:
    floor = {None: "not measured", True: "yes", False: "no"}[report.at_precision_floor]
    return [f"compatible: {'yes' if report.compatible else 'no'}", f"at precision floor: {floor}"]


def _charts(report: ParityReport) -> list[str]:
    """Draw local ratios in forward order, one chart per input and precision, on a log scale."""
    series: dict[str, list[Stage]] = {}
    for stage in report.stages:
        if stage.mode == "local" and stage.ratio is not None:
            label = f"{stage.input}, {stage.precision}: local error / floor"
            series.setdefault(label, []).append(stage)
    return [
        f"<h2>{escape(label)}</h2>{_chart(sorted(stages, key=lambda s: place(s.stage)))}"
        for label, stages in series.items()
    ]


def _chart(stages: Sequence[Stage]) -> str:
    width, height, left, bar = max(360, 16 * len(stages) + 60), 220, 50, stages[0].bar or 1.5
    top = max(10.0, *(s.ratio for s in stages if s.ratio is not None and math.isfinite(s.ratio)))
    y: Callable[[float], float] = lambda ratio: (
        height - 30 - (height - 50) * math.log10(max(min(ratio, top), 0.1) * 10) / math.log10(top * 10)
    )
    lines = [
        f'<line x1="{left}" x2="{width}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="{colour}"/>'
        f'<text x="2" y="{y(value) + shift:.1f}" font-size="11">{name}</text>'
        for value, colour, name, shift in ((1.0, "#888", "floor", 10), (bar, "#c33", f"bar {bar:g}", -2))
    ]
    dots = [
        f'<circle cx="{left + 16 * (n + 0.5):.0f}" cy="{y(s.ratio or 0.1):.1f}" r="4" '
        f'fill="{COLOURS.get(s.status, "#888")}"><title>{escape(s.stage)}: {s.ratio:.3g}</title></circle>'
        for n, s in enumerate(stages)
    ]
    ends = [(0, stages[0].stage), (len(stages) - 1, stages[-1].stage)]
    names = [
        f'<text x="{left + 16 * n}" y="{height - 8}" font-size="11" text-anchor="{"end" if n else "start"}">'
        f"{escape(name)}</text>"
        for n, name in ends
    ]
    names.append(f'<text x="2" y="{y(top):.1f}" font-size="11">{top:.3g}</text>')
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f"<svg {size}>{''.join(lines + dots + names)}</svg>"


def _pictures(item: Item, report: ParityReport) -> str:
    """Draw the frames with the error of every token over them and the worst tokens outlined."""
    stage = _telling_stage(item, report)
    if item.frames is None or stage is None or stage.trial is None or stage.trial.measured is None:
        return ""
    # A pass on a cut of the input has its own places; they are drawn where its grid lies in the whole.
    whole = len(stage.trial.keys) >= math.prod(item.grid)
    shown = item if whole else item.reduced()
    if shown.frames is None:
        return ""
    frames, rows, columns = shown.grid
    heat = np.zeros((frames, rows, columns))
    keys, errors = stage.trial.keys, stage.trial.measured.errors
    inside = (keys[:, 1:] >= 0).all(axis=1) & (keys[:, 1:] < (frames, rows, columns)).all(axis=1)
    heat[tuple(keys[inside, 1:].T)] = errors[inside]
    low = heat.min()
    drawn = [
        _frame(shown.frames[t], (heat[t] - low) / (heat.max() - low or 1), t, stage, shown.patch)
        for t in range(frames)
    ]
    caption = f"<p>error per token at {escape(stage.stage)} ({escape(stage.precision)}, {stage.mode})</p>"
    worst = "; ".join(_token_text(token) for token in stage.worst)
    return f"{caption}{''.join(drawn)}<p>worst tokens: {worst}</p>"


def _telling_stage(item: Item, report: ParityReport) -> Stage | None:
    ours = [s for s in report.stages if s.input == item.name and s.trial and s.trial.measured]
    found = report.first_divergence or {"stage": "", "mode": "", "precision": ""}
    way = (found["mode"], found["precision"])
    telling = [
        s
        for name in (f"{found['stage']}/{found.get('sub')}", found["stage"])
        for s in ours
        if s.stage == name and (s.mode, s.precision) == way
    ]
    return next(iter([*telling, *(s for s in ours if s.status == "fail"), *ours]), None)


def _frame(frame: NDArray[np.uint8], heat: NDArray[np.float64], t: int, stage: Stage, patch: int) -> str:
    height, width, _ = frame.shape
    weight = np.kron(heat, np.ones((patch, patch)))[:height, :width, None] * 0.75
    weight = np.pad(weight, ((0, height - weight.shape[0]), (0, width - weight.shape[1]), (0, 0)))
    blended = frame * (1 - weight) + np.array([255, 0, 0]) * weight
    image = require("PIL.Image")
    buffer = io.BytesIO()
    picture = image.fromarray(blended.astype(np.uint8))
    scale = min(1.0, WIDEST / width)
    picture.resize((max(1, round(width * scale)), max(1, round(height * scale)))).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    marks = "".join(_mark(token, patch) for token in stage.worst if token["token"][1] == t)
    shown = f'width="{max(240, round(width * scale))}" viewBox="0 0 {width} {height}"'
    link = f'href="data:image/png;base64,{data}" width="{width}" height="{height}"'
    return f"<figure><svg {shown}><image {link}/>{marks}</svg><figcaption>t={t}</figcaption></figure>"


def _mark(token: dict[str, Any], patch: int) -> str:
    _, t, y, x = token["token"]
    size, left, top = max(3.0, patch / 3), x * patch, y * patch
    return (
        f'<g><title>{_token_text(token)}</title><rect x="{left}" y="{top}" width="{patch}" height="{patch}" '
        f'fill="none" stroke="#06f" stroke-width="{patch / 10:.2f}"/>'
        f'<text x="{left + 1}" y="{top + size}" font-size="{size:.1f}">{t},{y},{x}</text></g>'
    )


def _token_text(token: dict[str, Any]) -> str:
    _, t, y, x = token["token"]
    return f"t={t} y={y} x={x}, cosine {token['cosine']:.6f}, error {token['error']:.3g}"


def _audit_table(report: ParityReport) -> str:
    if report.audit is None:
        return ""
    found = report.audit
    rows = [(word, str(count)) for word, count in sorted(found.weights.items())]
    rows += [(key, f"{a} / {b}") for key, (a, b) in {**found.config, **found.settings}.items()]
    cells = "".join(f"<tr><td>{escape(a)}<td>{escape(b)}" for a, b in rows)
    return f"<h2>Audit</h2><table>{cells}</table>"


def _stage_table(stages: Sequence[Stage]) -> str:
    rows = "".join(
        f"<tr><td>{escape(s.input)}<td>{escape(s.stage)}<td>{s.mode}<td>{s.precision}"
        f"<td class={s.status.split()[0]}>{s.status}<td>{escape(_metrics_line(s))}"
        for s in stages
    )
    titles = "<tr><th>input<th>stage<th>mode<th>precision<th>status<th>figures"
    return f"<h2>Stages</h2><table>{titles}{rows}</table>"
