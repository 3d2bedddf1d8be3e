"""Whose the merged weights are: the names that asked for them.

The engine has one adapter's content merged at a time and knows no names. As with pins, what was asked for under one
name is that name's alone, whoever else has the same bytes. The engine may also end a merge by itself, when it is
restarted or the bytes are deleted, so what it shows now decides. Knows the worker; no catalog and no routes.
"""

from typing import TYPE_CHECKING

from adapters.version import Version

if TYPE_CHECKING:
    from server.ports import Worker


class Merges:
    """The registry's names that asked for what is merged now, in the loop's thread alone."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def has(self, worker: "Worker", version: Version) -> bool:
        """Whether `version` is what is merged, and was asked for under its own name."""
        return version.id == worker.stats().merged and version.full_name in self._names

    def shown(self, version: Version, tier: str) -> str:
        """What is told of `tier`, where `version` is: to names that did not ask for the merge, where its rows lie."""
        return "device" if tier == "merged" and version.full_name not in self._names else tier

    async def merge(self, worker: "Worker", version: Version) -> None:
        """Raises MergeRefused, DoesNotFit."""
        merged = worker.stats().merged
        if merged is None:
            self._names.clear()  # the engine ended what they had asked for
        if merged == version.id:
            self._names.add(version.full_name)  # before we wait, so that whoever lets go meanwhile is not the last
        await worker.merge(version.id)
        self._names.add(version.full_name)

    async def release(self, worker: "Worker", name: str) -> None:
        """The registry's `name` asks for it no more; with the last one the merged weights go."""
        if name not in self._names:
            return
        self._names.remove(name)
        if not self._names:
            await worker.unmerge()
