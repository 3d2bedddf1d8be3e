"""What each tenant may have on the device at once, and what counts for it.

Owns the counting only: it moves nothing, and knows no budgets but the tenants'. An adapter that several tenants use
counts for each of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from adapters.manifest import AdapterId


class Use(NamedTuple):
    """An adapter, and the tenant whose requests want it; None for the server itself, which pins and merges."""

    adapter: AdapterId
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What one tenant may have on the device. None is no limit."""

    bytes: int | None = None
    adapters: int | None = None

    @property
    def limits(self) -> bool:
        return self.bytes is not None or self.adapters is not None

    def excess(self, bytes: int, adapters: int) -> bool:
        """Whether that much would be too much."""
        return (self.bytes is not None and bytes > self.bytes) or (
            self.adapters is not None and adapters > self.adapters
        )

    def part(self, bytes: int, adapters: int) -> float:
        """What part of it that much is, of the bytes or of the adapters, whichever is more."""
        of_bytes = 0.0 if self.bytes is None else bytes / self.bytes
        of_adapters = 0.0 if self.adapters is None else adapters / self.adapters
        return max(of_bytes, of_adapters)


class Shares:
    """Who has what on the device, each tenant's least recently used first. `default` holds for every tenant that is
    not in `tenants`.

    A tenant with a share has an adapter from when it takes it until it gives it up for another, or until the adapter
    leaves the device. A tenant without one takes what it runs, so that nobody else's giving up costs it anything.
    """

    def __init__(self, default: Share | None = None, tenants: Mapping[str, Share] | None = None) -> None:
        self._default, self._tenants = default or Share(), dict(tenants or {})
        self._held: dict[str, dict[AdapterId, int]] = {}

    # Queries

    @property
    def limits_anybody(self) -> bool:
        """Without limits nothing needs to be counted."""
        return self._default.limits or any(share.limits for share in self._tenants.values())

    def of(self, tenant: str | None) -> Share:
        return Share() if tenant is None else self._tenants.get(tenant, self._default)

    def admits(self, use: Use) -> bool:
        """Whether the tenant may use the adapter once it is on the device."""
        return not self.of(use.tenant).limits or use.adapter in self._held.get(use.tenant or "", {})

    def fits(self, use: Use, size: int) -> bool:
        """Whether the tenant's share can ever hold `size` bytes."""
        return not self.of(use.tenant).excess(size, 1)

    def held(self, tenant: str) -> dict[AdapterId, int]:
        """The adapters that count for a tenant, and their bytes."""
        return dict(self._held.get(tenant, {}))

    def used(self) -> tuple[float, ...]:
        """What part of their shares the tenants have that have one and hold anything, the fullest first."""
        shares = [(self.of(tenant), held) for tenant, held in self._held.items() if held]
        parts = (share.part(sum(held.values()), len(held)) for share, held in shares if share.limits)
        return tuple(sorted(parts, reverse=True))

    def users(self, adapter: AdapterId) -> set[str]:
        return {tenant for tenant, held in self._held.items() if adapter in held}

    def counted(self) -> frozenset[AdapterId]:
        """The adapters that count for anybody."""
        return frozenset().union(*self._held.values())

    def room_for(self, use: Use, size: int, stays: Callable[[Use], bool]) -> tuple[AdapterId, ...] | None:
        """What the tenant gives up, least recently used first, to take this adapter; None if that is not enough."""
        share, held = self.of(use.tenant), self._held.get(use.tenant or "", {})
        bytes, count = sum(held.values()) + size, len(held) + 1
        leaving: list[AdapterId] = []
        for adapter, its in held.items():
            if not share.excess(bytes, count):
                break
            if not stays(Use(adapter, use.tenant)):
                leaving.append(adapter)
                bytes, count = bytes - its, count - 1
        return None if share.excess(bytes, count) else tuple(leaving)

    # Commands

    def take(self, use: Use, size: int) -> None:
        """It counts for the tenant from now on, as the most recently used."""
        if use.tenant is not None:
            held = self._held.setdefault(use.tenant, {})
            held.pop(use.adapter, None)
            held[use.adapter] = size

    def give_up(self, use: Use) -> None:
        self._held.get(use.tenant or "", {}).pop(use.adapter, None)

    def left(self, adapter: AdapterId) -> None:
        """It is not on the device any more, and counts for nobody."""
        for held in self._held.values():
            held.pop(adapter, None)

    def copy(self) -> "Shares":
        other = Shares(self._default, self._tenants)
        other._held = {tenant: dict(held) for tenant, held in self._held.items()}
        return other

    def check_integrity(self) -> None:
        """Assert that nobody has more than its share."""
        for tenant, held in self._held.items():
            assert not self.of(tenant).excess(sum(held.values()), len(held)), f"{tenant} has more than its share"
