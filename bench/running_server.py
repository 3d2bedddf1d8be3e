"""Discovers a running server: the id of its base, its adapters, and its process.

Owns the two ways in which servers list their models. Starts nothing.
"""

from pathlib import PurePath

import httpx

from bench import launch, memory
from bench.api import Api, Dialect, LlamaCpp, OpenAI, Vllm
from bench.errors import BenchError
from bench.measure import HttpTarget

TIMEOUT_S = 30.0


def connect(name: str, url: str, dialect: Dialect) -> HttpTarget:
    """The server at `url` as a target.

    Raises httpx.HTTPError where it does not answer, BenchError where it does not list its models.
    """
    if dialect is Dialect.LLAMA_CPP:
        adapters = _of_llama_cpp(f"{url}/lora-adapters")
        return HttpTarget(name, url, "", frozenset(adapters), LlamaCpp(adapters), memory.listener(url))
    models = launch.models(url)
    base = next(str(model["id"]) for model in models if not model.get("parent"))
    names = frozenset(str(model["id"]) for model in models if model.get("parent"))
    api: Api = Vllm() if dialect is Dialect.VLLM else OpenAI()
    return HttpTarget(name, url, base, names, api, memory.listener(url))


def _of_llama_cpp(url: str) -> dict[str, int]:
    """The number of each adapter by its file's name."""
    reply = httpx.get(url, timeout=TIMEOUT_S).raise_for_status()
    try:
        return {PurePath(adapter["path"]).stem: int(adapter["id"]) for adapter in reply.json()}
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{url} is no list of adapters. Is that llama.cpp's server?") from error
