"""The Hub's own client, with errors that say what to do, counted retries, and tokens that never show."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any, TypeVar

from hilm.errors import (
    AuthRequired,
    HilmError,
    InputError,
    NetworkError,
    NotFound,
    OfflineError,
    StorageError,
)
from hilm.weights.hub_files import authorization, hub_address, is_offline, token_path
from hilm.weights.retry import PASSING, Patience, Retry, Stop, Transient, asked_pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from huggingface_hub import HfApi

    Result = TypeVar("Result")

PATIENCE = Patience(tries=5, first=1.0, longest=30.0, obey=120.0)
CONFLICT = 412
_LOGIN = "hilm login, or set HF_TOKEN"
_TOKENS = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=Bearer )\S+")
_XET_REFUSED = re.compile(r"\((401|403) ")
_SIGNATURE = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")


def resolve_token(token: str | None = None) -> str:
    """The token given, else ``HF_TOKEN``, else the stored login; empty without any.

    Raises:
        UsageError: It holds characters that no token has.
    """
    return authorization(token).get("Authorization", "").removeprefix("Bearer ")


def redact(text: str, token: str = "") -> str:
    """Blank out tokens and signed queries."""
    text = _SIGNATURE.sub(r"\1?…", _TOKENS.sub("<token>", text))
    return text.replace(token, "<token>") if token else text


def client(token: str | None = None, *, write: bool = False) -> HfApi:
    """The Hub's client for the Hub in use; it sends the token to that address alone.

    Raises:
        OfflineError: ``HF_HUB_OFFLINE`` is set.
        AuthRequired: Something is to be written, and there is no token.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 - a quarter of a second

    if is_offline():
        raise OfflineError("the Hub is to be used, but HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
    found = resolve_token(token)
    if write and not found:
        raise AuthRequired("publishing needs a token that may write", hint=_LOGIN)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are told by our errors
    return HfApi(endpoint=hub_address(), token=found or False, library_name="hilm")


def attempt(what: str, function: Callable[..., Result], *args: Any, **options: Any) -> Result:  # noqa: ANN401 - passed on
    """Call the client until it works.

    Raises:
        HilmError: As :func:`translate`, or after the last try.
    """
    from httpx2 import HTTPError  # noqa: PLC0415 - comes with the client

    retry = patience(what)
    while True:
        try:
            return function(*args, **options)
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            retry.pause(translate(error, what))


def patience(what: str) -> Retry:
    """Count failures of ``what``, with pauses between."""
    return Retry(what, PATIENCE, Stop())


def translate(error: Exception, what: str) -> Transient:
    """What an error of the client means.

    Returns:
        A failure that may pass.

    Raises:
        HilmError: Another try would not help.
    """
    from httpx2 import TransportError  # noqa: PLC0415 - comes with the client
    from huggingface_hub import errors  # noqa: PLC0415 - the same

    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) and inner not in chain:
        chain.append(inner)  # type: ignore[arg-type]
    for link in chain:
        match link:
            case HilmError():
                raise link
            case errors.OfflineModeIsEnabled():
                raise OfflineError(f"{what}: the Hub's client is offline") from None
            case errors.HfHubHTTPError():
                return _judge(link, what)
            case ConnectionError() if refused := _XET_REFUSED.search(str(link)):
                raise AuthRequired(f"{what}: Xet refuses the token ({refused[1]})", hint=_LOGIN) from None
            case TransportError() | ConnectionError() | TimeoutError():
                return Transient(f"no answer ({type(link).__name__})")
    match error:
        case errors.LocalEntryNotFoundError():
            message = f"{what}: the Hub does not answer, and the local cache does not have it"
            raise OfflineError(message) from None
        case OSError():
            raise StorageError(f"{what}: {redact(error.strerror or str(error))}") from None
    raise InputError(f"{what}: {redact(str(error)).splitlines()[0]}") from None


def _judge(error: Any, what: str) -> Transient:  # noqa: ANN401 - HfHubHTTPError
    """What a status means."""
    response, status = error.response, error.response.status_code
    elsewhere = not str(response.url).startswith(hub_address())
    if (
        status in PASSING or status == CONFLICT or (status in {400, 403} and elsewhere)
    ):  # a spoilt or late upload
        return Transient(
            f"status {status}", server=hub_address(), status=status, after=asked_pause(response.headers)
        )
    if status == 401:
        raise AuthRequired(f"{what}: the token is missing or rejected (401)", hint=_LOGIN) from None
    if status == 403 and response.headers.get("X-Error-Code") == "GatedRepo":
        raise AuthRequired(f"{what} is gated", hint="accept its terms on the Hub, then: hilm login") from None
    if status == 403:
        raise AuthRequired(f"{what}: no permission (403)", hint="use a token that may do this") from None
    if status in {404, 410}:
        raise NotFound(f"{what}: not found, or private", hint="check the spelling, or hilm login") from None
    said = redact(str(getattr(error, "server_message", "") or ""))
    raise NetworkError(f"{what}: the Hub answers with status {status} {said}".rstrip()) from None


def whoami(token: str | None = None) -> dict[str, Any]:
    """Who the token in use belongs to: ``name``, ``role`` and ``organisations``.

    Raises:
        AuthRequired: There is no token, or it is rejected.
    """
    user: dict[str, Any] = attempt("whoami", client(token, write=True).whoami)
    role = user.get("auth", {}).get("accessToken", {}).get("role", "")
    return {"name": user["name"], "role": role, "organisations": [o["name"] for o in user.get("orgs", ())]}


def login(token: str) -> dict[str, Any]:
    """Check a token and keep it where the Hub's own client looks, readable by its owner only.

    Raises:
        AuthRequired: The Hub rejects it; nothing is kept.
    """
    user, path = whoami(token), token_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(token.strip())
    path.chmod(0o600)
    return user


def logout() -> bool:
    """Forget the stored login; whether there was one."""
    found = token_path().is_file()
    token_path().unlink(missing_ok=True)
    return found
