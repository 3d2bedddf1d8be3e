"""Manifests as JSON, for the blob store and the database.

Owns that encoding. What an upload says of its base's weights is left out: that is a version's, and stands in the
registry. Reads only what the project wrote, so anything unexpected means damage.
"""

import json
from functools import lru_cache
from typing import Any

from adapters.errors import AdapterCorrupt
from adapters.manifest import AdapterId, Graft, Manifest

KNOWN_GRAFTS = 64


def manifest_to_json(manifest: Manifest) -> str:
    grafts = [[g.path, g.in_features, g.out_features, g.rank, g.scaling, g.dora] for g in manifest.grafts]
    value = {
        "id": manifest.id,
        "kind": manifest.kind,
        "rank": manifest.rank,
        "targets": manifest.targets,
        "grafts": grafts,
        "dtype": manifest.dtype,
        "base": manifest.base,
    }
    return json.dumps(value, separators=(",", ":"))


def manifest_from_json(text: str | bytes) -> Manifest:
    """Raises AdapterCorrupt when `text` is not what `manifest_to_json` wrote."""
    try:
        value: dict[str, Any] = json.loads(text)
        return Manifest(
            id=AdapterId(value["id"]),
            kind=value["kind"],
            rank=value["rank"],
            targets=tuple(value["targets"]),
            grafts=_grafts(tuple(map(tuple, value["grafts"]))),
            dtype=value["dtype"],
            base=value["base"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterCorrupt("The stored description of an adapter is damaged. Upload the adapter again.") from error


@lru_cache(KNOWN_GRAFTS)
def _grafts(described: tuple[tuple[Any, ...], ...]) -> tuple[Graft, ...]:
    """Adapters of one shape share theirs: thousands need not be made, nor kept."""
    return tuple(Graft(*graft) for graft in described)
