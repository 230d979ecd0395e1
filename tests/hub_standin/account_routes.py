"""Who the caller is, new and deleted repositories, and the check of a card's metadata."""

from __future__ import annotations

import re

from hub_standin.card_metadata import check_card
from hub_standin.exchange import Exchange
from hub_standin.repos import Refused

REPO_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")


def whoami(exchange: Exchange) -> None:
    account = exchange.account
    if account is None:
        raise Refused(401, None, "Invalid username or password.")
    organizations = [{"type": "org", "name": name, "roleInOrg": "write"} for name in account.organizations]
    token = {"type": "access_token", "accessToken": {"displayName": "standin", "role": account.role}}
    fields = {"type": "user", "id": account.name, "name": account.name, "isPro": False, "canPay": False}
    exchange.reply(200, {**fields, "orgs": organizations, "auth": token})


def _asked_repo(exchange: Exchange, asked: dict[str, str]) -> str:
    account = exchange.account
    if account is None:
        raise Refused(401, None, "Invalid username or password.")
    namespace = asked.get("organization") or account.name
    if namespace not in account.namespaces or account.role != "write":
        message = f'You don\'t have the rights to create a model under the namespace "{namespace}"'
        raise Refused(403, None, message)
    return f"{namespace}/{asked['name']}"


def create_repo(exchange: Exchange) -> None:
    asked = exchange.json()
    repo_id = _asked_repo(exchange, asked)
    if not REPO_NAME.fullmatch(asked["name"]):
        raise Refused(400, None, f"Invalid repo name: {repo_id}")
    url = f"{exchange.hub.url}/{repo_id}"
    with exchange.hub.lock:
        if repo_id in exchange.hub.repos:
            raise Refused(409, None, "You already created this model repo", url=url)
        exchange.hub.create(repo_id, private=asked.get("visibility") == "private" or bool(asked.get("private")))
    exchange.reply(200, {"url": url, "name": repo_id, "id": repo_id})


def delete_repo(exchange: Exchange) -> None:
    repo_id = _asked_repo(exchange, exchange.json())
    repo = exchange.repo(repo_id, write=True)
    with exchange.hub.lock:
        repo.remember("delete")
        exchange.hub.deleted[repo_id] = exchange.hub.repos.pop(repo_id)
    exchange.reply(200, {})


def validate_yaml(exchange: Exchange) -> None:
    errors, warnings = check_card(exchange.json()["content"])
    data = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    exchange.reply(400 if errors else 200, data)


ROUTES = (
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create_repo),
    ("DELETE", r"/api/repos/delete", delete_repo),
    ("POST", r"/api/validate-yaml", validate_yaml),
)
