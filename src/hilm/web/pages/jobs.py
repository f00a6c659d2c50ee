"""Models being taken in: how far, how fast, with how much memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hilm.html import Markup, table, tag
from hilm.quantities import count, seconds, share, size
from hilm.web.pages.common import bar, model_link

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hilm.web.jobs import Job


def show_jobs(jobs: Sequence[Job]) -> Markup:
    """One row a job, the newest first; a running one has a button that stops it."""
    if not jobs:
        return tag("p", "Nothing is being added.", class_="faint")
    columns = ["model", "mode", "state", "progress", ">values/s", ">server memory", ">time", "layer", ""]
    return tag("div", table(columns, [_row(job) for job in jobs]), role="status")


def _row(job: Job) -> list[str]:
    read = job.passes * job.total + job.values
    rate = count(round(read / job.seconds)) if job.seconds and read else ""
    button = tag("button", "Cancel", type="button", data_job=job.number, aria_label=f"Cancel {job.model}")
    return [
        model_link(job.name) if job.name else job.model,
        job.mode,
        tag("span", job.state, class_=f"badge {job.state}"),
        _progress(job),
        rate,
        size(job.memory) if job.memory else "",
        seconds(job.seconds) if job.seconds else "",
        tag("span", job.layer if job.active else " ".join(job.problem), class_="faint"),
        button if job.active else "",
    ]


def _progress(job: Job) -> str:
    if not job.total:
        return ""
    return bar(job.values / job.total, f"{share(job.values, job.total)} of pass {job.passes + 1}")
