"""A live server, and uploads to it, each of which is followed by the invariants."""

from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.adapters import llama_shape
from tests.support.http import LiveServer
from tests.support.invariants import Invariants
from tests.support.server_rig import ServerRig

SHAPE = llama_shape()


@dataclass(frozen=True)
class CheckedServer:
    """Checks the invariants after each upload."""

    rig: ServerRig
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
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (status, code), reply.text[:2000]
        assert "faults" in error or code != "invalid_adapter"
        for fault in error.get("faults", ()):
            check_fault(fault)
        assert self.http.get("/v1/adapters/hostile").status_code == 404
        message: str = error["message"]
        return message


def check_fault(fault: dict[str, str]) -> None:
    """It says where, what and what to do, in ASCII on one line each, and at no length, whatever the file holds."""
    assert fault.keys() == {"where", "problem", "fix"} and all(fault.values()), fault
    assert fault["where"].startswith(("adapter_config.json", "adapter_model.safetensors")), fault["where"][:200]
    for text in fault.values():
        assert text.isascii() and text.isprintable() and len(text) < 1000, text[:1000]
