"""The stand-in Hub on two loopback ports: the Hub itself, and the host that signed links lead to."""

from __future__ import annotations

import re
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

from hub_standin import account_routes, download_routes, repo_routes, upload_routes
from hub_standin.exchange import Exchange
from hub_standin.hub import Hub
from hub_standin.repos import Refused

Route = tuple[str, str, Callable[..., None]]
HUB_ROUTES: Sequence[Route] = (
    *account_routes.ROUTES,
    *repo_routes.ROUTES,
    *upload_routes.ROUTES,
    *download_routes.ROUTES,
)


class HubExchange(Exchange):
    """The Hub's port. Routes match the path as it is sent: a slash in a branch's name comes as %2F."""

    routes: Sequence[Route] = HUB_ROUTES

    def route(self) -> None:
        for method, pattern, action in self.routes:
            found = re.fullmatch(pattern, self.path_text) if method == self.command else None
            if found:
                groups = [urllib.parse.unquote(group) for group in found.groups() if group is not None]
                return action(self, *groups)
        raise Refused(404, None, f"no route {self.command} {self.path_text}")


class ContentExchange(HubExchange):
    """The port of signed links."""

    host_kind = "content"
    routes = download_routes.CONTENT_ROUTES


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news; anything else is a fault of the stand-in and is shown."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


@contextmanager
def serve(hub: Hub, port: int = 0) -> Iterator[Hub]:
    """Answer requests in threads until the block ends. Port 0 takes any free one."""
    servers = [
        Server(("127.0.0.1", chosen), type(handler.__name__, (handler,), {"hub": hub}))
        for handler, chosen in ((HubExchange, port), (ContentExchange, 0))
    ]
    hub.url = f"http://127.0.0.1:{servers[0].server_port}"
    hub.content_url = f"http://localhost:{servers[1].server_port}"  # another host for whoever keeps tokens to one
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.stopping.set()
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
