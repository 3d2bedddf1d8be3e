"""Where strangers knock: uploads to a live server, each followed by the invariants."""

from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.adapters import llama_shape
from tests.support.face import Face
from tests.support.http import LiveServer
from tests.support.invariants import Invariants

SHAPE = llama_shape()


@dataclass(frozen=True)
class Door:
    """Where strangers knock."""

    face: Face
    live: LiveServer
    http: httpx.Client
    invariants: Invariants

    def upload(self, folder: Path, name: str = "hostile") -> httpx.Response:
        """A directory's two files, as a form; then the invariants."""
        config = (folder / "adapter_config.json").read_bytes()
        return self.post(config, (folder / "adapter_model.safetensors").read_bytes(), name)

    def post(self, config: bytes, weights: bytes, name: str = "hostile") -> httpx.Response:
        files = {"config": ("adapter_config.json", config), "weights": ("adapter_model.safetensors", weights)}
        reply = self.http.post("/v1/adapters", data={"name": name}, files=files)
        self.invariants.check(reply)
        return reply

    def refused(self, reply: httpx.Response, status: int = 422, code: str = "invalid_adapter") -> str:
        """The message, once it is sure that nothing was registered."""
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
        assert self.http.get("/v1/adapters/hostile").status_code == 404
        message: str = reply.json()["error"]["message"]
        return message
