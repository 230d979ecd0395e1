"""What can be known before a byte goes up: the name, the token's rights, the sizes, the storage they need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import constants, get_token

from quantkit.errors import BadInput
from quantkit.hub.address import SCHEME, parse_address
from quantkit.hub.client import api, call
from quantkit.run.sizes import format_size

# The Hub's limits (huggingface.co/docs/hub/storage-limits, August 2026).
LARGEST_FILE = 500 * 10**9
ADVISED_FILE = 50 * 10**9
FREE_PRIVATE = 100 * 10**9
WRITING_ROLES = ("write", "admin", "contributor")
WRITE = "repo.write"


def check_repo_name(repo: str) -> None:
    """Refuse what cannot be a repo's name on the Hub, or names no owner."""
    try:
        address = parse_address(f"{SCHEME}{repo}")
    except BadInput:
        address = None
    if address is None or address.revision is not None:
        raise BadInput(f"{repo}: not a repo to publish to; write owner/name, without hub: and without a revision")


def check_sizes(planned: Mapping[str, int]) -> list[str]:
    """Refuse files that the Hub does not take; return a line for each that is large enough to give trouble.

    `planned` are bytes by path in the repo.
    """
    lines = []
    for path, size in planned.items():
        if size > LARGEST_FILE:
            raise BadInput(f"{path}: has {format_size(size)}, the Hub takes 500 GB at most; make smaller parts")
        if size > ADVISED_FILE:
            lines.append(f"{path}: has {format_size(size)}; parts of at most 50 GB upload and download more reliably")
    return lines


def check_token(repo: str) -> dict[str, Any]:
    """Refuse to go on without a token that may write to the owner of `repo`; return what the Hub says of its account.

    Whether a membership or a fine-grained token suffices is not always told; what is not told is not refused.
    """
    owner = repo.partition("/")[0]
    if constants.is_offline_mode():
        raise BadInput(f"{repo}: HF_HUB_OFFLINE is set; unset it to publish")
    if get_token() is None:
        raise BadInput(f"{repo}: publishing needs a token; run `hf auth login` or set HF_TOKEN")
    account: dict[str, Any] = call(f"{repo}: token", api().whoami)
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise BadInput(f"{repo}: this token may only read; make one that may write")
    _check_fine_grained(repo, owner, token)
    organizations = {one.get("name"): one for one in account.get("orgs") or []}
    if owner != account.get("name") and owner not in organizations:
        raise BadInput(
            f"{repo}: this token belongs to {account.get('name')}, which is neither {owner} nor a member of it"
        )
    role = organizations.get(owner, {}).get("roleInOrg")
    if role is not None and role not in WRITING_ROLES:
        raise BadInput(
            f"{repo}: {account.get('name')} has the role {role} in {owner}; ask there for the right to write"
        )
    return account


def _check_fine_grained(repo: str, owner: str, token: Mapping[str, Any]) -> None:
    scopes = (token.get("fineGrained") or {}).get("scoped")
    if token.get("role") != "fineGrained" or not isinstance(scopes, list):
        return
    writable = {scope.get("entity", {}).get("name") for scope in scopes if WRITE in scope.get("permissions", [])}
    if not writable & {repo, owner}:
        raise BadInput(f"{repo}: this fine-grained token has no write access to it or to {owner}; give it that")


def storage_line(repo: str, planned_bytes: int, account: Mapping[str, Any]) -> str | None:
    """What to say where a private repo of `planned_bytes` needs more than the storage that is free of charge."""
    if planned_bytes <= FREE_PRIVATE or account.get("isPro"):
        return None
    return (
        f"{repo}: {format_size(planned_bytes)} in a private repo; 100 GB of private storage are free, more needs a "
        "paid plan (public repos do not)"
    )
