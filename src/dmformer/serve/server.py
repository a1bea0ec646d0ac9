"""The process that serves: it says when it is ready, and finishes what it began before it ends."""

import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

GRACE = 5
"""Seconds that an answer may take to be sent, when the server ends, beyond the longest that it may take to be made."""


KEPT = 75
"""Seconds that an idle connection is kept: longer than clients and proxies keep theirs, or one that is just being
closed here might be used once more there."""


def run(app: FastAPI, place: socket.socket, timeout: float, ready: Callable[[], None]) -> None:
    """Serve until SIGINT, which then is a KeyboardInterrupt, or SIGTERM, which then exits with 143.

    Both let the requests in hand finish; a second SIGINT does not.

    Args:
        app: The application.
        place: A socket that listens.
        timeout: Seconds that a request may take.
        ready: Is called when requests are answered.
    """
    config = uvicorn.Config(
        app,
        http="h11",  # discards what is left of a refused request's body, so that its sender gets the answer
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEPT,
        timeout_graceful_shutdown=round(timeout) + GRACE,
    )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every damaged form
    signal.signal(signal.SIGTERM, _exit)  # uvicorn catches it, and raises it again at its end
    _Server(config, ready).run([place])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
