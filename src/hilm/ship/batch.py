"""Publish a folder of models, each on its own; and the functions that were documented for it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import HilmError, InputError, UsageError
from hilm.ship.staging import SIZES, TORCH
from hilm.ship.upload import plan_push, push

if TYPE_CHECKING:
    from os import PathLike

_SIZE = re.compile(r"(?:^|[_-])(\d+[mb])(?=$|[_-])", re.IGNORECASE)
_FILES = TORCH | {".safetensors", ".gguf", ".onnx"}


def push_batch(
    checkpoint_dir: str | PathLike[str],
    repo_prefix: str,
    *,
    model_size: str | None = None,
    dry_run: bool = False,
    **options: Any,  # noqa: ANN401 - of push, or of plan_push for a dry run
) -> dict[str, Any]:
    """Publish every model of a folder as ``PREFIX-suffix``, in the order of their names.

    Args:
        checkpoint_dir: Holds model folders and weight files.
        repo_prefix: ``owner/name``; the suffix is the size in a file's name, else its whole name.
        model_size: Of the ResNet-BKs in PyTorch files; by default as their names say.
        dry_run: Only plan.
        options: As of :func:`hilm.ship.push`.

    Returns:
        ``pushed``: what each push told; ``failed``: model, repo, message, hint, exit_code.

    Raises:
        InputError: There are no models.
        UsageError: Two would have one name.
    """
    named = {path: f"{repo_prefix}-{_suffix(path)}" for path in _models(Path(checkpoint_dir))}
    twice = [name for name, count in Counter(named.values()).items() if count > 1]
    if twice:
        raise UsageError(f"two models would be {twice[0]}", hint="rename one, or push them one by one")
    document: dict[str, Any] = {"pushed": [], "failed": []}
    for path, repo_id in named.items():
        size = model_size or (_size(path) if path.suffix in TORCH else None)
        try:
            told = (
                plan_push(path, repo_id, model_size=size, **options).describe()
                if dry_run
                else push(path, repo_id, model_size=size, **options)
            )
            document["pushed"].append({"model": str(path)} | told)
        except HilmError as error:
            failure = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
            document["failed"].append({"model": str(path), "repo": repo_id} | failure)
    return document


def _models(folder: Path) -> list[Path]:
    found = [
        path
        for path in sorted(folder.iterdir() if folder.is_dir() else ())
        if path.suffix in _FILES or (path.is_dir() and any(path.glob("*.safetensors")))
    ]
    if not found:
        raise InputError(f"{folder} holds no models", hint="name a folder of model folders or weight files")
    return found


def _suffix(path: Path) -> str:
    found = _SIZE.findall(path.stem)
    return (found[-1] if found else path.stem.replace("_", "-")).lower()


def _size(path: Path) -> str | None:
    size = _suffix(path).upper()
    return size if size in SIZES else None


def upload_model_to_hub(
    model_path: str | PathLike[str],
    repo_id: str,
    model_size: str | None = None,
    token: str | None = None,
    private: bool | None = None,  # noqa: FBT001 - as documented
    **options: Any,  # noqa: ANN401 - of push
) -> str:
    """Publish one model and return its address. Options and errors as of :func:`hilm.ship.push`."""
    url: str = push(model_path, repo_id, model_size=model_size, token=token, private=private, **options)[
        "url"
    ]
    return url


def batch_upload_models(
    checkpoint_dir: str | PathLike[str],
    repo_prefix: str,
    token: str | None = None,
    private: bool | None = None,  # noqa: FBT001 - as documented
    **options: Any,  # noqa: ANN401 - of push
) -> list[str]:
    """Publish every model of a folder and return their addresses; as :func:`push_batch`.

    Raises:
        HilmError: One could not be published; the others were.
    """
    document = push_batch(checkpoint_dir, repo_prefix, token=token, private=private, **options)
    if failed := document["failed"]:
        raise HilmError(f"{failed[0]['model']}: {failed[0]['message']}", hint=failed[0]["hint"])
    return [told["url"] for told in document["pushed"]]
