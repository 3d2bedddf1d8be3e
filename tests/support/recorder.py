"""A recorder for machines without CUDA graphs: it replays by computing again, and holds that to a graph's rules.

A graph is a list of operations with the addresses, shapes and numbers it was recorded with. So each time the same must
be computed by the same operations on the same outside memory, and nothing may be asked of the device.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from engine.recording import NotRecordable, Replay

ASKS = ("_local_scalar_dense", "nonzero", "is_nonzero", "unique", "masked_select", "equal")
"""What cannot be done without waiting for the device."""

Entry = tuple[object, ...]


class Again:
    """`recorded` counts recordings, `replayed` replays."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, compute: Callable[[], None]) -> Replay:
        self.recorded += 1
        compute()
        with _Watch() as first:
            compute()

        def replay() -> None:
            self.replayed += 1
            with _Watch() as now:
                compute()
            for then, again in zip(first.log, now.log, strict=True):
                assert then == again, "a graph would have done the first"

        return replay


class _Watch(TorchDispatchMode):
    """Writes down every operation; memory that it made itself is named by its number, other memory by address."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log: list[Entry] = []
        self._made: dict[int, int] = {}
        self._kept: list[Tensor] = []  # else the next result could have the address of one that is gone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in func.name() for name in ASKS):
            raise NotRecordable(f"{func.name()} asks the device")
        leaves = tree_flatten((args, kwargs or {}))[0]
        self.log.append((func.name(), *(self._named(leaf) for leaf in leaves)))
        results = func(*args, **(kwargs or {}))
        for result in tree_flatten(results)[0]:
            if isinstance(result, Tensor) and not self._is_view(result, leaves):
                self._made.setdefault(result.untyped_storage().data_ptr(), len(self._made))
                self._kept.append(result)
        return results

    def _named(self, leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf if isinstance(leaf, int | float | bool | str | None) else str(leaf)
        address = leaf.untyped_storage().data_ptr()
        where = ("made", self._made[address]) if address in self._made else ("outside", address)
        return (*where, leaf.storage_offset(), tuple(leaf.shape), leaf.stride(), leaf.dtype)

    def _is_view(self, result: Tensor, leaves: list[object]) -> bool:
        address = result.untyped_storage().data_ptr()
        return any(isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() == address for leaf in leaves)
