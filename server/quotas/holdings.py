"""What a tenant has in the store, for the quotas on it.

Knows names as the registry has them, `tenant/name`.
"""

from collections.abc import Container, Iterable

from adapters.manifest import AdapterId
from adapters.naming import owner_of
from adapters.version import Version
from server.quotas.tenant_quotas import Holdings


def holdings(versions: Iterable[Version], tenant: str, damaged: Container[AdapterId]) -> Holdings:
    """Every content counts once, however many names and versions share it, and a `damaged` one not: there is room to
    send it again."""
    own = [version for version in versions if owner_of(version.name) == tenant]
    sizes = {version.id: version.manifest.stored_bytes for version in own if version.id not in damaged}
    return Holdings({version.name for version in own}, sum(sizes.values()))
