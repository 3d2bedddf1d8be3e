"""Moves adapters between tiers: reads them in background threads, places them on the device, frees them.

Owns the host tier's contents and the reading threads. Decides nothing; `residency.py` does.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import torch
from torch import Tensor

from adapters.bank import Bank, Loaded, num_bytes
from adapters.errors import AdapterCorrupt
from adapters.loading import Loader
from adapters.manifest import AdapterId
from adapters.mover import Arrival
from adapters.store import BlobStore


class Supply:
    """Blobs on disk, adapters in host memory, adapters in the bank. Is a `mover.Mover`."""

    def __init__(
        self, store: BlobStore, bank: Bank, dtype: torch.dtype, base_weight: Callable[[str], Tensor], readers: int = 2
    ) -> None:
        self._store = store
        self._bank = bank
        self._dtype = dtype
        self._host: dict[AdapterId, Loaded] = {}
        self._sizes: dict[AdapterId, int] = {}
        alone = None if bank.kernels is None else bank.kernels.work_alone  # the processors belong to the engine
        self._threads = ThreadPoolExecutor(readers, thread_name_prefix="adapter-reader", initializer=alone)
        self._hashing = ThreadPoolExecutor(readers, thread_name_prefix="adapter-hasher")
        self._loader = Loader(dtype, base_weight, bank.device.type == "cuda", self._hashing, bank.kernels)

    def size(self, adapter: AdapterId) -> int:
        if adapter not in self._sizes:
            self._sizes[adapter] = num_bytes(self._store.manifest(adapter), self._dtype.itemsize)
        return self._sizes[adapter]

    def fetch(self, adapter: AdapterId, arrived: Callable[[Arrival], None]) -> None:
        self._threads.submit(self._read, adapter, arrived)

    def drop_host(self, adapter: AdapterId) -> None:
        self._host.pop(adapter, None)

    def place(self, adapter: AdapterId) -> None:
        self._bank.place(self._host[adapter])

    def drop_device(self, adapter: AdapterId) -> None:
        self._bank.drop(adapter)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._hashing.shutdown(wait=True)

    def _read(self, adapter: AdapterId, arrived: Callable[[Arrival], None]) -> None:
        """The digest is checked on every read: what is served is what was uploaded. What is not goes to quarantine."""
        started = monotonic()
        try:
            self._host[adapter] = self._load(adapter)
        except Exception as error:  # whatever it is, it concerns this adapter's requests alone
            arrived(Arrival(adapter, monotonic() - started, error))
        else:
            arrived(Arrival(adapter, monotonic() - started))

    def _load(self, adapter: AdapterId) -> Loaded:
        try:
            return self._loader.load(self._store.open(adapter))
        except AdapterCorrupt:
            self._store.quarantine_if_damaged(adapter)
            raise
