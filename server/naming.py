"""The names that adapters go by in public, looked up from ids.

Owns nothing: it reads the catalog anew each time, so a moved name is never shown stale.
"""

from adapters.catalog import Catalog
from adapters.manifest import AdapterId
from adapters.naming import owner_of

RESERVED = frozenset({"uploads"})
"""Words that stand in a path where an adapter's name may stand."""


class Names:
    """`names(id)` is the name whose newest version has this id, else the id itself; so tenants' adapters go by ids."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def __call__(self, id: AdapterId) -> str:
        own = (version for version in self._catalog.newest() if not owner_of(version.name))
        return next((version.name for version in own if version.id == id), id)
