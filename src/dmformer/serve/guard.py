"""Middleware for every request: checks of its origin, security headers, and a handler for unexpected errors."""

import ipaddress
import json
import logging
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .address import LOOPBACK
from .limits import Refused
from .metrics import Metrics

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every response. There are no CORS headers, so browsers do not let other sites' pages read responses."""

log = logging.getLogger("dmformer.serve")


class Guard:
    """Refuses cross-site requests from browsers, and counts all requests.

    The Host header must name the server. Otherwise a page whose domain resolves to this machine (DNS rebinding) would
    count as the same site. POST requests must come from the server's own page or from no page at all, according to
    Origin and Sec-Fetch-Site.

    Args:
        paths: Paths with their own counters; all others count as "other".
        any_address: Whether to accept any IP address as host; an address cannot be rebound.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, paths: Collection[str], names: Collection[str], any_address: bool
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = frozenset(paths)
        self.names = frozenset(name.lower() for name in names)
        self.any_address = any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 0

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, receive, with_headers)
        except Refused as refused:
            self.metrics.rejected.labels(refused.reason).inc()
            await _send_error(with_headers, refused)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status:  # a response that has started cannot be replaced
                raise
            self.metrics.rejected.labels("server_error").inc()
            told = "The server failed on this request; see its log."
            await _send_error(with_headers, Refused(500, "server_error", told))
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests.labels(path, str(status or "none")).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - begin)

    def _check(self, scope: Scope) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self._is_known(_hostname(host)):
            raise Refused(
                403, "strange_host", f"This server does not accept the host '{host[:200]}': start it with --names."
            )
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") or (origin is not None and not self._is_own(origin, host)):
            raise Refused(403, "other_site", "Pages of other sites may not use this server.")

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a page of this origin is the server's own; scheme and port may differ behind a proxy."""
        netloc = origin.partition("://")[2].lower()
        return bool(netloc) and (netloc == host.lower() or _hostname(netloc) in self.names.difference(LOOPBACK))

    def _is_known(self, name: str) -> bool:
        return name in self.names or (self.any_address and _is_address(name))


def _hostname(netloc: str) -> str:
    """Host and port -> the host in lower case; "" if invalid."""
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _send_error(send: Send, refused: Refused) -> None:
    headers = {"Content-Type": "application/json", **refused.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    body = json.dumps({"error": refused.sentence, "reason": refused.reason}, ensure_ascii=False).encode()
    await send({"type": "http.response.start", "status": refused.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
