"""What stands before every request: which site it comes from, the headers of its answer, and a last net for errors."""

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
"""Of every answer. Without CORS headers a browser gives no other site's page anything of it to read."""

log = logging.getLogger("dmformer.serve")


class Guard:
    """Refuses requests that another site's page makes a browser send, and counts all.

    The Host header must name the server: else a page whose name leads to this machine (DNS rebinding) would be of the
    same site. What changes or computes something, POST, must come from the server's own page or from no page at all,
    as Origin and Sec-Fetch-Site tell.

    Args:
        app: To guard.
        metrics: Counts the answers.
        paths: That are counted by their names; any other is "other".
        names: By which the server may be reached, without port.
        any_address: Whether it may also be reached by whatever IP address; an address cannot be rebound.
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
            if status:  # half an answer cannot be taken back
                raise
            self.metrics.rejected.labels("server_error").inc()
            told = "The server failed on this request; its log says more."
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
                403, "strange_host", f"This server is not reached as '{host[:200]}': it must be started with --names."
            )
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") or (origin is not None and not self._is_own(origin, host)):
            raise Refused(403, "other_site", "Pages of other sites may not use this server.")

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a page of this origin is the server's own; a proxy's scheme and port are its own affair."""
        netloc = origin.partition("://")[2].lower()
        return bool(netloc) and (netloc == host.lower() or _hostname(netloc) in self.names.difference(LOOPBACK))

    def _is_known(self, name: str) -> bool:
        return name in self.names or (self.any_address and _is_address(name))


def _hostname(netloc: str) -> str:
    """Host and port -> the host alone, in small letters; "" for what is none."""
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
