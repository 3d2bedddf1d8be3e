"""How the base and the adapters are described in replies: OpenAI's model card and our adapter card.

Knows versions and residents; knows no routes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from adapters.evaluations import Score
from adapters.manifest import AdapterId
from adapters.version import Version
from server.deps import in_thread
from server.ports import Services, Worker

_TIERS = ("merged", "device", "host")  # fastest first


def base_card(services: Services) -> dict[str, Any]:
    return {
        "id": services.base_id,
        "object": "model",
        "created": services.started,
        "owned_by": "rootstock",
        "root": services.base_id,
        "parent": None,
        "permission": [],
        "max_model_len": services.limits.max_model_len,
    }


def model_card(services: Services, version: Version, id: str | None = None) -> dict[str, Any]:
    """`root` is the adapter's content, `parent` the base it is grafted on."""
    return base_card(services) | {
        "id": id or version.name,
        "created": int(version.created.timestamp()),
        "root": version.id,
        "parent": services.base_id,
    }


async def adapter_card(services: Services, version: Version) -> dict[str, Any]:
    return (await adapter_cards(services, [version]))[0]


async def adapter_cards(services: Services, versions: list[Version]) -> list[dict[str, Any]]:
    """A pin is shown once the engine holds it; pins and merges are shown for the name that asked for them."""
    damaged, pins = (
        await in_thread(services.server_catalog.quarantined),
        await in_thread(services.server_catalog.pinned),
    )
    held, tiers = services.worker.pins(), dict.fromkeys(damaged, "corrupt") | _tiers_of(services.worker)
    pinned = {(version.full_name, version.id) for version in pins if version.id in held}
    return [
        _describe(
            services,
            version,
            services.merges.shown(version, tiers.get(version.id, "disk")),
            (version.full_name, version.id) in pinned,
        )
        for version in versions
    ]


def _describe(services: Services, version: Version, state: str, pinned: bool) -> dict[str, Any]:
    """`canary` has the aliases that give this version a fraction of their traffic, and the fraction.
    `score` is how it did when it was last measured, or null.

    `refused` is why the base cannot serve an adapter that was added when another one was served, or null.
    """
    manifest = version.manifest
    record = manifest.trained_on
    return {
        "id": version.id,
        "object": "adapter",
        "name": version.name,
        "version": version.number,
        "aliases": list(version.aliases),
        "canary": dict(version.canaries),
        "kind": manifest.kind,
        "rank": manifest.rank,
        "targets": list(manifest.targets),
        "bytes": manifest.stored_bytes,
        "dtype": manifest.dtype,
        "state": state,
        "pinned": pinned,
        "base": services.base_id,
        "base_weights": record and record.weights,
        "base_quantization": record and record.quantization,
        "score": version.score and score_card(version.score),
        "refused": services.tenant_catalog.misfit(version),
        "created": int(version.created.timestamp()),
    }


def score_card(score: Score) -> dict[str, Any]:
    """`mean_logprob` in nats per token of the completions, `exact` a share of the rows."""
    return {
        "mean_logprob": score.mean_logprob,
        "exact": score.exact,
        "rows": score.rows,
        "tokens": score.tokens,
        "eval": f"sha256:{score.sha256}",
    }


def _tiers_of(worker: Worker) -> dict[AdapterId, str]:
    """The fastest tier that each resident adapter is in."""
    found: dict[AdapterId, str] = {}
    for resident in worker.residents():
        known = found.get(resident.id)
        if known is None or _TIERS.index(resident.tier) < _TIERS.index(known):
            found[resident.id] = resident.tier
    return found


def listing(cards: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """OpenAI's list object."""
    return {"object": "list", "data": list(cards)}
