"""Publish a model: plan against what is there, send what differs in one commit, read it back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import ChecksumMismatch, InputError, NotFound, UsageError
from hilm.ship.card_check import Finding, check
from hilm.ship.card_rules import CARD
from hilm.ship.download import content_id
from hilm.ship.hub import attempt, client, patience, translate
from hilm.ship.references import is_repository
from hilm.ship.staging import Staged, stage
from hilm.weights.byte_source import identify
from hilm.weights.hub_files import hub_address, locate_hub

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from huggingface_hub import HfApi

    from hilm.weights.hub_files import HubFile

SECRETS = "C14"
"""The rule that nothing waives."""


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What a push would do.

    Attributes:
        repo_id: The repository.
        head: Commit that the plan was made against; empty for a new repository.
        files: Path → ``add``, ``change`` or ``same``.
        sizes: Path → bytes.
        remote_only: Paths of the repository that stay as they are.
        left_out: Paths of the folder that are not published.
        findings: What is wrong with the card.
        card: Its text.
    """

    repo_id: str
    head: str
    files: dict[str, str]
    sizes: dict[str, int]
    remote_only: list[str]
    left_out: list[str]
    findings: list[Finding]
    card: str

    @property
    def sent(self) -> list[str]:
        """Paths that differ."""
        return [name for name, state in self.files.items() if state != "same"]

    def describe(self) -> dict[str, Any]:
        """As JSON: ``repo``, ``head``, ``files`` (name, state, size), ``bytes`` to send, and the rest."""
        return {
            "repo": self.repo_id,
            "head": self.head,
            "files": [{"name": n, "state": s, "size": self.sizes[n]} for n, s in self.files.items()],
            "bytes": sum(self.sizes[name] for name in self.sent),
            "remote_only": self.remote_only,
            "left_out": self.left_out,
            "findings": [{k: getattr(f, k) for k in Finding.__slots__} for f in self.findings],
            "card": self.card,
        }


def plan_push(
    source: str | PathLike[str],
    repo_id: str,
    *,
    model_size: str | None = None,
    also: Sequence[str | PathLike[str]] = (),
    revision: str | None = None,
    token: str | None = None,
    check_card: bool = True,
) -> PushPlan:
    """Say what :func:`push` would send; nothing is written on the Hub. Options as there.

    Raises:
        InputError: There is nothing to publish.
        NetworkError: The Hub does not answer.
    """
    client(token)  # says so if there is no network
    beside = [Path(path) for path in also]
    with stage(Path(source), _named(repo_id), model_size=model_size, also=beside) as staged:
        return _plan(staged, repo_id, revision, token, check_card=check_card)


def push(
    source: str | PathLike[str],
    repo_id: str,
    *,
    model_size: str | None = None,
    also: Sequence[str | PathLike[str]] = (),
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload with hilm",
    token: str | None = None,
    check_card: bool = True,
    force: bool = False,
) -> dict[str, Any]:
    """Publish a model in one commit; what is there is not sent again, a push that failed is simply repeated.

    Args:
        source: Folder, weight file, reel or graph; or a PyTorch file of a ResNet-BK.
        repo_id: ``owner/name``; made when it does not exist.
        model_size: Documented size of the ResNet-BK in a PyTorch file.
        also: Files to publish beside it, such as a reel.
        private: Whether a new repository is private (as by default) or public.
        revision: Branch; ``main`` by default.
        message: Of the commit.
        token: Instead of ``HF_TOKEN`` or the stored login.
        check_card: Whether to check more than for secrets; it must be for a public repository.
        force: Publish in spite of a card with errors; secrets are never published.

    Returns:
        What :meth:`PushPlan.describe` tells, and ``commit``, ``url``, ``created``, ``pushed`` (files sent).

    Raises:
        UsageError: The repository's name is not valid, or options do not go together.
        InputError: The card has errors, or there is nothing to publish.
        AuthRequired: There is no token, or it may not write.
        ChecksumMismatch: What is on the Hub afterwards is not what was sent.
        NetworkError: The Hub does not answer.
    """
    if private is False and not check_card:
        raise UsageError("a public card must be checked", hint="leave out --no-card-check")
    api, beside = client(token, write=True), [Path(path) for path in also]
    with stage(Path(source), _named(repo_id), model_size=model_size, also=beside) as staged:
        plan = _plan(staged, repo_id, revision, token, check_card=check_card)
        _gate(plan, force=force)
        if not plan.head:
            attempt(repo_id, api.create_repo, repo_id, private=private is not False, exist_ok=True)
        elif (private or not check_card) and not attempt(repo_id, api.model_info, repo_id).private:
            hint = "leave out --private and --no-card-check"
            raise UsageError(f"{repo_id} exists and is public", hint=hint)
        commit = _commit(api, staged.files, repo_id, revision, message, token)
    done = {"commit": commit, "url": f"{hub_address()}/{repo_id}", "created": not plan.head}
    return plan.describe() | done | {"pushed": len(plan.sent)}


def _named(repo_id: str) -> str:
    if not is_repository(repo_id):
        raise UsageError(
            f"{repo_id!r} is no name of a repository", hint="owner/name, of letters, digits, - _ and ."
        )
    return repo_id


def _plan(
    staged: Staged, repo_id: str, revision: str | None, token: str | None, *, check_card: bool
) -> PushPlan:
    findings = check(staged.folder, repo_id, files=staged.files, scan=check_card)
    head, remote = _remote(repo_id, revision, token)
    return PushPlan(
        repo_id=repo_id,
        head=head,
        files={name: _state(path, remote.get(name)) for name, path in staged.files.items()},
        sizes={name: path.stat().st_size for name, path in staged.files.items()},
        remote_only=sorted(remote.keys() - staged.files.keys()),
        left_out=list(staged.left_out),
        findings=[found for found in findings if check_card or found.rule == SECRETS],
        card=staged.files[CARD].read_text("utf-8", errors="replace"),
    )


def _remote(repo_id: str, revision: str | None, token: str | None) -> tuple[str, dict[str, HubFile]]:
    """Head and files of a repository; neither when it does not exist."""
    try:
        found = locate_hub(repo_id, revision=revision, token=token, offline=False)
    except NotFound as error:
        if "repository" not in error.message:
            raise
        return "", {}
    return found.commit, found.files


def _state(path: Path, there: HubFile | None) -> str:
    if there is None:
        return "add"
    status = path.stat()
    same = (
        status.st_size == there.size and _content_id(path, bool(there.sha256), identify(status)) == there.etag
    )
    return "same" if same else "change"


@lru_cache(4096)
def _content_id(path: Path, large: bool, identity: object) -> str:  # noqa: FBT001 - a key of the cache
    """Hash a file once for all the times that it is compared."""
    del identity
    return content_id(path, large=large)


def _gate(plan: PushPlan, *, force: bool) -> None:
    """Refuse a card with errors, and any secret.

    Raises:
        InputError: There are some.
    """
    errors = [f for f in plan.findings if f.level == "error" and (not force or f.rule == SECRETS)]
    if errors:
        first = errors[0]
        where = f"{first.file}:{first.line}" if first.line else first.file or "weights"
        raise InputError(
            f"the card has {len(errors)} errors, the first: {first.rule} {where}: {first.message}",
            hint="hilm card check tells all; --force publishes in spite of them, but never a secret",
        )


def _commit(
    api: HfApi, files: dict[str, Path], repo_id: str, revision: str | None, message: str, token: str | None
) -> str:
    """Send what differs in one commit, and read it back; a try that failed may have worked: each looks first.

    Returns:
        The commit that holds everything.
    """
    from httpx2 import HTTPError  # noqa: PLC0415 - comes with the client
    from huggingface_hub import CommitOperationAdd  # noqa: PLC0415 - a quarter of a second

    retry, answered = patience(repo_id), False
    while True:
        remote = locate_hub(repo_id, revision=revision, token=token)
        different = {n: p for n, p in files.items() if _state(p, remote.files.get(n)) != "same"}
        if not different:
            return remote.commit
        if answered:
            raise ChecksumMismatch(f"{min(different)} of {repo_id} is not what was sent", hint="push again")
        try:
            api.create_commit(
                repo_id,
                [CommitOperationAdd(name, path) for name, path in different.items()],
                commit_message=message,
                revision=revision,
                parent_commit=remote.commit,
            )
            answered = True
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            retry.pause(translate(error, repo_id))
