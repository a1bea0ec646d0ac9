"""The server process: reports when it is ready, and finishes running requests before it exits."""

import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

GRACE = 5
"""Extra seconds at shutdown for sending a response, beyond the time limit for computing it."""


KEPT = 75
"""Seconds that an idle connection is kept: longer than clients and proxies keep theirs, so that they do not reuse a
connection while it is being closed here."""


def run(app: FastAPI, place: socket.socket, timeout: float, ready: Callable[[], None]) -> None:
    """Serve until SIGINT, which raises KeyboardInterrupt, or SIGTERM, which exits with 143.

    Both let running requests finish; a second SIGINT does not.
    """
    config = uvicorn.Config(
        app,
        http="h11",  # discards the rest of a refused request's body, so that the client receives the response
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEPT,
        timeout_graceful_shutdown=round(timeout) + GRACE,
    )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns about every malformed form
    signal.signal(signal.SIGTERM, _exit)  # uvicorn catches the signal, and raises it again at shutdown
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
