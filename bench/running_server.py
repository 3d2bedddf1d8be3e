"""Discovers a running server: the id of its base, its adapters, and its process.

Owns the two ways in which servers list their models. Starts nothing.
"""

from pathlib import PurePath
from typing import Any

import httpx

from bench import memory
from bench.api import Api, Dialect, LlamaCpp, OpenAI, Vllm
from bench.measure import HttpTarget

TIMEOUT_S = 30.0


def connect(name: str, url: str, dialect: Dialect) -> HttpTarget:
    """The server at `url` as a target. Raises httpx.HTTPError where it does not list its models."""
    if dialect is Dialect.LLAMA_CPP:
        listed = _get(f"{url}/lora-adapters")
        adapters = {PurePath(adapter["path"]).stem: int(adapter["id"]) for adapter in listed}
        return HttpTarget(name, url, "", frozenset(adapters), LlamaCpp(adapters), memory.listener(url))
    models = _get(f"{url}/v1/models")["data"]
    base = next(str(model["id"]) for model in models if not model.get("parent"))
    names = frozenset(str(model["id"]) for model in models if model.get("parent"))
    api: Api = Vllm() if dialect is Dialect.VLLM else OpenAI()
    return HttpTarget(name, url, base, names, api, memory.listener(url))


def _get(url: str) -> Any:
    return httpx.get(url, timeout=TIMEOUT_S).raise_for_status().json()
