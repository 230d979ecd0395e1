"""Calls to the Hub through its own client: what is tried again, what is said when it fails, and no token in any of it.

Written against huggingface_hub 1.31 to 2.x, whose HTTP libraries differ (httpx, httpx2): their errors are told apart by
the names of their classes.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from quantkit import __version__
from quantkit.errors import BadInput, QuantkitError, RunFailed

T = TypeVar("T")

LIBRARY = "quantkit"
# Seconds before the second attempt; each later wait is twice as long, up to LONGEST_WAIT.
FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0
# The Hub counts requests in windows of five minutes, so no Retry-After of its own is longer.
LONGEST_RETRY_AFTER = 300.0

# What a signed link of another host answers when its time is over, by store.
EXPIRED = {400, 401, 403, 404, 410}
_RETRIED_STATUS = {408, 425, 429}
_REMEDIES = {
    400: "the Hub finds the request not valid",
    401: "no token that the Hub accepts; run `hf auth login` or set HF_TOKEN",
    402: "the account's storage or plan does not allow it; free some, or take a larger plan",
    403: "this token may not do that; give it the right (read, or write to publish) or ask the owner for access",
    404: "not found, or private and not visible to this token; check the name and HF_TOKEN",
    409: "it exists already or somebody else changes it now; choose another name or repeat the command",
    412: "the branch has moved meanwhile; repeat the command",
    413: "too large for the Hub; write smaller files",
    422: "the Hub finds the content not valid",
    507: "the account's storage is full; free some, or take a larger plan",
}
_CODES = {
    "RepoNotFound": "no such repository, or private and not visible to this token; check the name and HF_TOKEN",
    "RevisionNotFound": "the repository has no such branch, tag or commit; check what follows the @",
    "EntryNotFound": "the repository has no such file",
    "GatedRepo": "access must be asked for on the repository's page, then run `hf auth login` or set HF_TOKEN",
}
_QUOTA = re.compile(r"quota|storage limit|private storage|exceed\w* .*storage|storage .*exceed|payment required", re.I)
# hf_xet raises plain errors whose text has the status of the storage server.
_XET_STATUS = re.compile(r"status (?:client|server) error \((\d{3})|\bstatus(?: code)?:? (\d{3})\b", re.I)
# A full or read-only disk does not get better by asking the Hub again.
_LOCAL_TROUBLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EMFILE, errno.ENFILE, errno.EFBIG),
}
_HIDDEN = "[hidden]"
_SECRETS = (
    (re.compile(r"\bhf_(?:oauth_|jwt_)?[A-Za-z0-9]{16,}[A-Za-z0-9._-]*"), _HIDDEN),
    (re.compile(r"(?i)\b(bearer\s+)[^\s'\",;]+"), rf"\1{_HIDDEN}"),
    (re.compile(r"(\bhttps?://)[^\s/@'\"]+@"), rf"\1{_HIDDEN}@"),
    (re.compile(r"(\bhttps?://[^\s?'\"<>]+)\?[^\s'\"<>)\]]+"), rf"\1?{_HIDDEN}"),
    (re.compile(r"(?i)\b((?:x-amz-[a-z-]+|signature|policy|key-pair-id)=)[^\s&'\"]+"), rf"\1{_HIDDEN}"),
)


def call(what: str, action: Callable[[], T], *, attempts: int = 6, sleep: Callable[[float], object] = time.sleep) -> T:
    """Run `action` and return its result, again when the network or the server fails, up to `attempts` times.

    `what` begins the message of an error: the repository, and the file if there is one. `sleep` waits a number of
    seconds. Raises BadInput for what a repetition cannot mend (token, name, quota, conflict), RunFailed when the last
    attempt failed, QuantkitError for trouble with a local file; other errors of ours pass unchanged.
    """
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except QuantkitError:
            raise
        except Exception as error:
            final = _final(what, error)
            if final is not None:
                raise final from None
            if not _passing(error):
                raise
            if attempt == attempts:
                raise RunFailed(redact(f"{what}: {_short(error)}; repeat the command to go on")) from None
            wait = _retry_after(error)
        if wait is None:
            wait = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * random.uniform(0.75, 1)
        sleep(wait)
    raise ValueError("at least one attempt")


def redact(text: str) -> str:
    """Return `text` without tokens, passwords in addresses, and query strings, which sign links."""
    for secret in _own_tokens():
        text = text.replace(secret, _HIDDEN)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def api() -> HfApi:
    """The client's interface to the Hub, with the user's own settings of endpoint, token, proxy and offline mode."""
    return HfApi(library_name=LIBRARY, library_version=__version__)


_quiet_lock = threading.Lock()
_quiet_users = 0
_loud: tuple[bool, int] = (False, logging.WARNING)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside of this context the client neither draws progress bars nor warns. Threads may share and overlap it."""
    global _quiet_users, _loud  # noqa: PLW0603  (the client's own switches are global)
    logger = logging.getLogger("huggingface_hub")
    with _quiet_lock:
        _quiet_users += 1
        if _quiet_users == 1:
            _loud = (are_progress_bars_disabled(), logger.level)
            logger.setLevel(logging.CRITICAL + 1)
            if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:  # else the environment decides, and the switch warns
                disable_progress_bars()
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0:
                were_disabled, level = _loud
                logger.setLevel(level)
                if constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not were_disabled:
                    enable_progress_bars()


def _own_tokens() -> list[str]:
    """The user's tokens: of the environment and of the last login."""
    found = [os.environ.get(name, "") for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    with suppress(OSError, UnicodeDecodeError):
        found.append(Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8"))
    stripped = (token.strip() for token in found)
    return sorted({token for token in stripped if len(token) >= 4}, key=len, reverse=True)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: the client wraps a failed request for a file's metadata."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of the client stands for."""
    for link in _chain(error):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    match = _XET_STATUS.search(str(error)) if _is_xet(error) else None
    return int(match[1] or match[2]) if match else None


def _is_from_elsewhere(error: BaseException) -> bool:
    """Whether not the Hub answered but a store that it had sent the client to by a signed link."""
    for link in _chain(error):
        url = getattr(getattr(link, "response", None), "url", None)
        if url is not None:
            return urlsplit(str(url))[:2] != urlsplit(constants.ENDPOINT)[:2]
    return False


def _header(error: BaseException, name: str) -> str | None:
    for link in _chain(error):
        headers = getattr(getattr(link, "response", None), "headers", None)
        if headers is not None:
            value = headers.get(name)
            return None if value is None else str(value)
    return None


def _is_xet(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) or type(error).__module__.partition(".")[0] == "hf_xet"


def _is_transport(error: BaseException) -> bool:
    """Whether the HTTP library (httpx or httpx2) failed on the way, not the server in its answer."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _final(what: str, error: Exception) -> QuantkitError | None:
    """What is raised at once; None for an error that may pass."""
    status = _status(error)
    if (setting := _wrong_setting(error)) is not None:
        return BadInput(redact(f"{what}: {setting}"))
    if status is not None:
        return None if status in EXPIRED and _is_from_elsewhere(error) else _refusal(what, error, status)
    if isinstance(error, OSError) and error.errno in _LOCAL_TROUBLE and not _is_xet(error):
        place = f" {error.filename}" if error.filename else ""
        return QuantkitError(f"{what}:{place} {error.strerror}; mend that and repeat the command")
    return None


def _wrong_setting(error: Exception) -> str | None:
    """What the user has to change, where it was not the server that said so."""
    kinds = {type(link).__name__ for link in _chain(error)}
    if any(isinstance(link, OfflineModeIsEnabled) for link in _chain(error)):
        return "HF_HUB_OFFLINE is set and this is not on the disk; unset it, or download it first"
    if isinstance(error, HFValidationError):
        return " ".join(str(error).split())
    if "UnsupportedProtocol" in kinds:
        return "HF_ENDPOINT or the proxy is not an address that begins with http:// or https://; correct it"
    return _REMEDIES[401] if "XetAuthenticationError" in kinds else None


def _refusal(what: str, error: Exception, status: int) -> QuantkitError | None:
    said = next((text for link in _chain(error) if (text := getattr(link, "server_message", None))), "")
    if _QUOTA.search(f"{said} {error}") and status in (400, 402, 403, 413, 422):
        return BadInput(redact(f"{what}: {_REMEDIES[402]} (HTTP {status}{_in_brackets(said)})"))
    if status in _RETRIED_STATUS or (status >= 500 and status not in _REMEDIES) or status < 400:
        return None
    remedy = _CODES.get(_header(error, "X-Error-Code") or "") or _REMEDIES.get(status, "the Hub refuses it")
    return BadInput(redact(f"{what}: {remedy} (HTTP {status}{_in_brackets(said)})"))


def _in_brackets(said: str) -> str:
    text = " ".join(str(said).split())
    return f": {text[:200]}" if text else ""


def _passing(error: Exception) -> bool:
    """Whether trying again may help: trouble on the way, bodies that end early, and whatever hf_xet raises."""
    return _status(error) is not None or _is_transport(error) or _is_xet(error) or isinstance(error, OSError)


def _retry_after(error: Exception) -> float | None:
    """Seconds that the server asks to wait."""
    asked = (_header(error, "Retry-After") or "").strip()
    if not asked:  # the newer form, `"api";r=0;t=55`
        match = re.search(r"\br=0\b.*?\bt=(\d+)", _header(error, "RateLimit") or "")
        asked = match[1] if match and _status(error) == 429 else ""
    return min(float(asked), LONGEST_RETRY_AFTER) if asked.isdigit() else None


def _short(error: Exception) -> str:
    """An error in one line."""
    status = _status(error)
    name = type(error).__name__
    text = f"the Hub answers HTTP {status}" if status is not None else " ".join(str(error).split())[:300] or name
    return text if status is not None or _is_xet(error) else f"the Hub cannot be reached ({text})"
