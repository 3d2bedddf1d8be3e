"""The names that clients call adapters by, looked up from ids.

Owns nothing: it reads the catalog anew each time, so a moved name is never shown stale.
"""

from adapters.catalog import Catalog
from adapters.manifest import AdapterId


class Names:
    """`names(id)` is the name whose newest version has this id, else the id itself."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def __call__(self, id: AdapterId) -> str:
        return next((version.name for version in self._catalog.list() if version.id == id), id)
