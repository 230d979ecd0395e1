"""Trouble that the stand-in Hub makes on demand, as data: which request, what goes wrong, how often."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field

QUOTA_MESSAGE = (
    "Private repository storage limit reached, Please upgrade your plan to increase your private storage limit."
)
# What the Hub says beside a status that a fault asks for: error code, message.
STATUS_WORDS: dict[int, tuple[str | None, str]] = {
    400: (None, "Bad request"),
    401: (None, "Invalid credentials in Authorization header"),
    403: (None, "You don't have the required permissions to perform this action"),
    404: ("EntryNotFound", "Entry not found"),
    429: (None, "We had to rate limit you"),
    500: (None, "Internal Error - We're working hard to fix this as soon as possible!"),
    502: (None, "Bad Gateway"),
    503: (None, "Service Unavailable"),
    504: (None, "Gateway Timeout"),
}
# Besides three-digit statuses.
KINDS = frozenset({"cut", "lost", "slow", "stall", "corrupt", "quota", "expired", "checksum"})


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD /path?query" matches `match` (searched).

    `kind` is a status ("500", "429", "401" ...) or one of
    * cut: the connection closes after `after_bytes` of the body: of the request's if it has one, else of the answer's
    * lost: the request is carried out, but the connection closes before the answer
    * slow: `bytes_per_second` of the body
    * stall: nothing more comes after `after_bytes` for `seconds` (or until the server stops)
    * corrupt: the byte at `after_bytes` of the body is flipped, on its way in (the checksum is then refused) or out
    * quota: 403 as when private storage is full
    * expired: 403 as of a signed link that is too old
    * checksum: sha256 values in a listing (tree, paths-info, revision) are not those of the files
    """

    match: str
    kind: str
    times: int = 1
    skip: int = 0  # matching requests that pass unharmed before
    after_bytes: int = 0
    seconds: float = 3600.0
    bytes_per_second: int = 100_000
    retry_after: float = 0.0  # said with 429 and 503
    seen: int = field(default=0, init=False)  # requests that met it

    def __post_init__(self) -> None:
        if self.kind not in KINDS and not re.fullmatch(r"[45]\d\d", self.kind):
            raise ValueError(f"unknown kind of fault {self.kind!r}: a status or one of {', '.join(sorted(KINDS))}")

    @property
    def status(self) -> int | None:
        """The status that this kind answers with instead of doing anything, if it is of that sort."""
        if self.kind.isdigit():
            return int(self.kind)
        return 403 if self.kind in ("quota", "expired") else None

    def words(self) -> tuple[str | None, str]:
        """Error code and message of the answer."""
        if self.kind == "quota":
            return None, QUOTA_MESSAGE
        if self.kind == "expired":
            return None, "Request has expired"
        return STATUS_WORDS.get(int(self.kind), (None, f"stand-in fault {self.kind}"))


class Faults:
    """The faults that are set. Thread-safe; they can be added and cleared while the server runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._faults.extend(faults)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, request: str) -> Fault | None:
        """The fault that the request ("METHOD /path?query") meets, counted; the first one set that matches."""
        with self._lock:
            for fault in self._faults:
                if fault.seen >= fault.times + fault.skip or not re.search(fault.match, request):
                    continue
                fault.seen += 1
                if fault.seen > fault.skip:
                    return fault
        return None
