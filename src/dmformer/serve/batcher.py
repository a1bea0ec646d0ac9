"""One thread that owns a model and processes items from many requests in shared batches."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..utils.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger("dmformer.serve")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A result, and the duration of its batch in seconds."""

    value: Result
    worked: float


class BatchError(Exception):
    """A batch failed; the message is for the client, the cause is in the log."""


class Batcher(Generic[Item, Result]):
    """A queue with one worker thread.

    The worker takes up to `size` waiting items, and waits up to `wait` seconds for more before it starts. If the work
    raises an error, all items of the batch receive it (a `UserError` unchanged, others as `BatchError`), and the worker
    continues with the next batch.

    Args:
        work: Items -> results, one per item, in the same order.
        wait: Maximum seconds from the first item of a batch to its start.
        watch: Called with the size and the duration in seconds of every batch.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Result]],
        size: int = 1,
        wait: float = 0.0,
        watch: Callable[[int, float], None] = lambda size, seconds: None,
        name: str = "model",
    ) -> None:
        self.work = work
        self.size = size
        self.wait = wait
        self.watch = watch
        self._queue: queue.SimpleQueue[_Waiting[Item, Result] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> "Future[Done[Result]]":
        """Put an item into the queue; if its future is cancelled before its batch starts, it is skipped.

        Raises:
            RuntimeError: After `close`.
        """
        waiting = _Waiting(item, Future[Done[Result]]())
        with self._lock:  # so that no item is queued after the end marker
            if self._closed:
                raise RuntimeError("the server is shutting down")
            self._queue.put(waiting)
        return waiting.future

    def close(self) -> None:
        """Process the remaining items and end the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return self._queue.qsize()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        last = False
        while not last:
            batch, last = self._next_batch()
            batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
            if batch:
                self._finish(batch)

    def _next_batch(self) -> tuple[list["_Waiting[Item, Result]"], bool]:
        """The next batch, and whether it is the last."""
        batch: list[_Waiting[Item, Result]] = []
        end = None
        while len(batch) < self.size:
            try:
                timeout = None if end is None else max(0.0, end - time.perf_counter())
                waiting = self._queue.get(timeout=timeout)
            except queue.Empty:
                break
            if waiting is None:
                return batch, True
            batch.append(waiting)
            end = time.perf_counter() + self.wait if end is None else end
        return batch, False

    def _finish(self, batch: list["_Waiting[Item, Result]"]) -> None:
        begin = time.perf_counter()
        try:
            results = self.work([waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except UserError as error:  # says which input the model cannot process
            self._fail(batch, error)
            return
        except Exception as error:
            log.exception("a batch of %d failed", len(batch))
            kind = type(error).__name__
            self._fail(batch, BatchError(f"The model failed on this batch ({kind}); see the server's log."))
            return
        worked = time.perf_counter() - begin
        self.watch(len(batch), worked)
        for waiting, result in zip(batch, results, strict=True):
            waiting.future.set_result(Done(result, worked))

    def _fail(self, batch: list["_Waiting[Item, Result]"], error: Exception) -> None:
        for waiting in batch:
            waiting.future.set_exception(error)


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    future: "Future[Done[Result]]"
