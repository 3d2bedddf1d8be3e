"""The ledger's own thread: whoever records waits for no disk.

Owns the queue between the event loop and the ledger. A row is on disk as soon as the commit before it has ended,
which takes milliseconds; a kill -9 loses what is still in the queue, and nothing is ever written twice.
"""

from queue import Empty, SimpleQueue
from threading import Event, Thread

import structlog

from server.usage.ledger import Ledger, Usage

_log = structlog.get_logger(__name__)
_RETRY_S = 1.0


class LedgerWriter:
    """Appends to one ledger. What cannot be written, because the disk is full, is kept and tried again."""

    def __init__(self, ledger: Ledger, retry_s: float = _RETRY_S) -> None:
        self.ledger, self._retry_s = ledger, retry_s
        self._queue: SimpleQueue[Usage | None] = SimpleQueue()
        self._closing = Event()
        self._thread = Thread(target=self._run, name="usage-ledger", daemon=True)
        self._thread.start()

    def record(self, row: Usage) -> None:
        """Never blocks. Safe to call from any thread."""
        self._queue.put(row)

    def close(self) -> None:
        """Write what is left, with one try more if that fails, and end."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            rows, ended = self._batch()
            while rows and not self._written(rows):
                if self._closing.wait(self._retry_s):
                    if not self._written(rows):
                        _log.error("usage_lost", rows=[row.id for row in rows])
                    break

    def _batch(self) -> tuple[list[Usage], bool]:
        """Everything that has come, at least one; and whether that was the end."""
        rows: list[Usage] = []
        item = self._queue.get()
        while item is not None:
            rows.append(item)
            try:
                item = self._queue.get_nowait()
            except Empty:
                return rows, False
        return rows, True

    def _written(self, rows: list[Usage]) -> bool:
        try:
            self.ledger.append(rows)
        except Exception as error:
            _log.error("usage_not_written", rows=len(rows), error=str(error))
            return False
        return True
