"""What is asked of a real engine after every hostile case: I1, I2 and I5, on the tensors and the answers themselves.

I1 every weight and buffer of the base has the bits that it had; I2 the canary's greedy answer is, bit for bit, what it
was; I5 blocks, slots and references are back where they were when nobody asked for anything.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

import httpx

from engine.runner import ModelRunner
from engine.worker import EngineWorker
from loader.base import Base
from tests.support.http import LiveServer, eventually
from tests.support.server_rig import BASE, ServerRig

PROMPT, LENGTH = (7, 42, 99, 3, 250, 18, 61), 8


class RealEngineWatch:
    """Takes down how things are when it is made, and compares from then on. `runner` computes for `worker`'s engine."""

    def __init__(
        self, base: Base, worker: EngineWorker, runner: ModelRunner, rig: ServerRig, live: LiveServer, canary: str
    ) -> None:
        self._base, self._worker, self._runner, self._rig, self._live = base, worker, runner, rig, live
        self._canary = canary
        self._weights = self.weights()
        with live.client() as http:
            self._answers = {model: said(http, model) for model in (canary, BASE)}
        assert self._answers[canary] != self._answers[BASE], "a canary that sings what the base sings tells nothing"
        eventually(lambda: self.held() == _NOTHING)

    def __call__(self) -> None:
        """Assert all three."""
        assert self.weights() == self._weights, "I1"
        with self._live.client() as http:
            assert {model: said(http, model) for model in self._answers} == self._answers, "I2"
        eventually(lambda: self.held() == _NOTHING)

    def weights(self) -> Mapping[str, str]:
        """Every parameter and buffer by name, with its shape, dtype and the digest of its bytes."""
        model = self._base.model
        tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        return {name: f"{tensor.shape} {tensor.dtype} {_digest(tensor)}" for name, tensor in tensors.items()}

    def held(self) -> Mapping[str, object]:
        """What is held, asked on the engine's thread between two steps. Raises AssertionError where counts disagree."""
        ask = self._worker._call(self._held)
        return asyncio.run_coroutine_threadsafe(ask, self._live.loop).result(20)

    def _held(self) -> Mapping[str, object]:
        engine, catalog = self._worker._engine, self._rig.catalog
        engine.check_integrity()
        residency = engine.tiers.residency
        slots = {id for id, tier, _ in residency.residents() if tier == "device"}
        return {
            "blocks": engine.pool.num_used,
            "references": sum(engine.pool._counts),
            "sequences": len(engine._sequences) + len(self._worker._outputs),
            "slots without tensors, or the reverse": slots ^ self._runner._bank._placed.keys(),
            "slots of what is gone": slots - self._rig.registry.ids(),
            "slots kept": residency.pinned | residency._merged.keys(),
            "leases": dict(catalog.leases._uses),
            "doomed": set(catalog.leases._doomed),
            "answers": self._rig.services.lifecycle.in_flight,
        }


_NOTHING: Mapping[str, object] = {
    "blocks": 0,
    "references": 0,
    "sequences": 0,
    "slots without tensors, or the reverse": set(),
    "slots of what is gone": set(),
    "slots kept": frozenset(),
    "leases": {},
    "doomed": set(),
    "answers": 0,
}


def said(http: httpx.Client, model: str, prompt: tuple[int, ...] = PROMPT, length: int = LENGTH) -> list[int]:
    """The tokens of a greedy answer."""
    fields: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
    body = {"model": model, "prompt": list(prompt), "max_tokens": length} | fields
    reply = http.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    ids: list[int] = reply.json()["choices"][0]["token_ids"]
    assert len(ids) == length
    return ids


def _digest(tensor: Any) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()
