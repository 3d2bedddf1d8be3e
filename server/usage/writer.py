"""The ledger's own thread: whoever records waits for no disk.

Owns the queue between the event loop and the ledger. What has ended is on disk as soon as the commit before it has
ended, which takes milliseconds. What has begun waits a moment for company, so that short requests cost no write more
and many that come together cost one. A kill -9 loses what is still in the queue, and nothing is ever written twice.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic

import structlog

from server.usage.ledger import Ledger, Usage, UsageStart

_log = structlog.get_logger(__name__)
_RETRY_S = 1.0
_COMPANY_S = 0.05


@dataclass(slots=True)
class _Batch:
    """What is written together. What has both begun and ended has ended."""

    ended: list[Usage] = field(default_factory=list)
    begun: dict[str, UsageStart] = field(default_factory=dict)

    def add(self, item: UsageStart | Usage) -> None:
        if isinstance(item, Usage):
            self.begun.pop(item.id, None)
            self.ended.append(item)
        else:
            self.begun[item.id] = item

    def __bool__(self) -> bool:
        return bool(self.ended or self.begun)


class LedgerWriter:
    """Appends to one ledger. What cannot be written, because the disk is full, is kept and tried again."""

    def __init__(self, ledger: Ledger, retry_s: float = _RETRY_S) -> None:
        self.ledger, self._retry_s = ledger, retry_s
        self._queue: SimpleQueue[UsageStart | Usage | None] = SimpleQueue()
        self._closing = Event()
        self._thread = Thread(target=self._run, name="usage-ledger", daemon=True)
        self._thread.start()

    def record(self, item: UsageStart | Usage) -> None:
        """That a request has begun, or what it used now that it has ended. Never blocks. Safe to call from any thread.

        One that has begun again has more tokens than before; all of it is told before its end.
        """
        self._queue.put(item)

    def close(self) -> None:
        """Write what is left, with one try more if that fails, and end."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            batch, last = self._batch()
            while batch and not self._written(batch):
                closing = self._closing.wait(self._retry_s)
                last = self._take(batch) or last
                if closing:
                    if not self._written(batch):
                        _log.error("usage_lost", rows=[row.id for row in batch.ended])
                    break

    def _take(self, batch: _Batch) -> bool:
        """What has come meanwhile, so that notes on one request stay one; and whether that was the last."""
        with suppress(Empty):
            while (item := self._queue.get_nowait()) is not None:
                batch.add(item)
            return True
        return False

    def _batch(self) -> tuple[_Batch, bool]:
        """Everything that has come, at least one; and whether that was the last."""
        batch, due = _Batch(), None
        while True:
            try:
                item = self._queue.get(timeout=None if due is None else max(0.0, due - monotonic()))
            except Empty:
                return batch, False
            if item is None:
                return batch, True
            batch.add(item)
            if batch.ended:
                due = 0.0
            elif due is None:
                due = monotonic() + _COMPANY_S

    def _written(self, batch: _Batch) -> bool:
        try:
            self.ledger.append(batch.ended, list(batch.begun.values()))
        except Exception as error:
            _log.error("usage_not_written", rows=len(batch.ended), error=str(error))
            return False
        return True
