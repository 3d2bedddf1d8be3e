"""What the server asks of the layers below it: an engine worker and a tokenizer, by shape.

Owns the protocols and the bundle of services that `create_app` takes. Knows no torch and
no transformers, so that the whole of HTTP can be tested against small fakes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import anyio

from adapters.catalog import Catalog
from adapters.manifest import AdapterId
from adapters.tenant_catalog import TenantCatalog
from adapters.uploads import Uploads
from engine.constraint import Constraint
from engine.events import Event
from engine.sequence import Output, Request
from engine.snapshot import EngineStats, Resident
from server.host_check import HostCheck
from server.keys.ring import NoKeys
from server.lifecycle import Lifecycle, Phase
from server.merges import Merges
from server.meter import Meter
from server.metrics import Metrics
from server.principal import Principal
from server.structure import Structure
from server.tools.markup import Call, Function, Markup


class OutputStream(Protocol):
    """One request's increments. Closing it before the end aborts the request within a step."""

    def __aiter__(self) -> AsyncIterator[Output]: ...

    async def __anext__(self) -> Output: ...

    async def aclose(self) -> None: ...

    def unread(self) -> Sequence[Output]:
        """Take what has come and nobody has read; after `aclose`, that is all that will ever come."""
        ...


class Worker(Protocol):
    """The engine as the event loop sees it; `engine/worker.py` is the real one."""

    @property
    def alive(self) -> bool: ...

    @property
    def restarting(self) -> bool: ...

    @property
    def restarts(self) -> int: ...

    @property
    def silent_s(self) -> float: ...

    async def submit(self, request: Request, /) -> OutputStream:
        """Queue `request`. Raises PromptTooLong, QueueFull, EngineStopped, EngineRestarting, AdapterTooLarge."""
        ...

    async def pin(self, id: AdapterId, /) -> None: ...

    async def unpin(self, id: AdapterId, /) -> None: ...

    async def merge(self, id: AdapterId, /) -> None: ...

    async def unmerge(self) -> None: ...

    async def forget(self, id: AdapterId, /) -> None: ...

    async def prefetch(self, ids: Sequence[AdapterId], /) -> None: ...

    def residents(self) -> Sequence[Resident]: ...

    def device_quotas_used(self) -> Sequence[float]: ...

    def pins(self) -> frozenset[AdapterId]: ...

    def stats(self) -> EngineStats: ...


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat, its parts already joined to text.

    `calls` are the assistant's. A tool's turn `answers` the call of that id, of the function `name`.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    calls: tuple[Call, ...] = ()
    answers: str = ""
    name: str = ""


class Tokenizer(Protocol):
    """Text to token ids and back. `vocab_size` is the number of ids the model may produce.

    `markup` is how the base's chats spell calls of functions; None for one that is not known.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def markup(self) -> Markup | None: ...

    def special_id(self, text: str) -> int | None:
        """The special token that is spelled so, which decoding leaves out; None where that is plain text."""
        ...

    def encode(self, text: str) -> list[int]:
        """A prompt as the base expects it, with its begin-of-text token; special-token text is parsed."""
        ...

    def encode_chat(self, messages: Sequence[Message], functions: Sequence[Function] = ()) -> list[int]:
        """The chat template's tokens, of `functions` too; special-token text inside a message stays plain text.

        Raises ChatRefused when the base has no template or the template refuses the roles.
        """
        ...

    def encode_answer(self, text: str) -> list[int]:
        """What follows a prompt, as training encodes an answer: no begin-of-text token, no special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for, which need not be whole characters."""
        ...


class Grammars(Protocol):
    """Forms of answers, for this base's vocabulary; `server/grammars/` has the real one."""

    async def compile(self, structure: Structure, tenant: str, /) -> Callable[[], Constraint]:
        """What makes a constraint for each answer that must have this form. Raises BadRequest."""
        ...


class Authenticator(Protocol):
    """Who may call; `server/keys/ring.py` has both kinds. `required` is whether they must show a key."""

    @property
    def required(self) -> bool: ...

    async def authenticate(self, authorization: Sequence[str], /) -> Principal | None:
        """The owner of the key in these Authorization headers, or None, whatever is wrong with it."""
        ...


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """What one HTTP request wants of the engine. `sequences` are its ids there, `choices` of them to a prompt."""

    operation: Literal["chat", "text_completion"]
    model: str
    adapter: AdapterId | None
    stream: bool
    choices: int
    max_tokens: int
    temperature: float
    top_p: float
    sequences: tuple[str, ...]


class Traces(Protocol):
    """Who follows requests through the server; `server/traces.py` is the real one, and knows OpenTelemetry."""

    def begin(self, request_id: str, headers: Mapping[str, str]) -> str:
        """A request has come in; the id of its trace."""
        ...

    def describe(self, request_id: str, request: TracedRequest) -> None: ...

    def observe(self, event: Event) -> None: ...

    def end(self, request_id: str, method: str, route: str, status: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """The server's bounds. Bytes for bodies and uploads, seconds for waiting on a peer."""

    max_model_len: int
    max_body_bytes: int = 4 << 20
    max_upload_bytes: int = 2 << 30
    max_choices: int = 256
    idle_s: float = 30.0


_JUDGED_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a route may touch. `form_dir` holds forms while they arrive; without `adapter_root`, no server paths.

    `tenant_catalog` is what the caller's tenant sees of `server_catalog`, which has everybody's adapters.
    `upload_limiter` bounds how many uploads are judged at once.
    """

    worker: Worker
    server_catalog: Catalog
    tenant_catalog: TenantCatalog
    tokenizer: Tokenizer
    grammars: Grammars
    base_id: str
    limits: Limits
    metrics: Metrics
    form_dir: Path
    uploads: Uploads
    adapter_root: Path | None = None
    authenticator: Authenticator = field(default_factory=NoKeys)
    host_check: HostCheck = HostCheck(any_host=True)
    traces: Traces | None = None
    meter: Meter = field(default_factory=Meter)
    merges: Merges = field(default_factory=Merges)
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    started: int = field(default_factory=lambda: int(time.time()))
    pinning: asyncio.Lock = field(default_factory=asyncio.Lock)
    upload_limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_JUDGED_AT_ONCE))

    @property
    def ready(self) -> bool:
        """Whether new requests are taken."""
        return self.lifecycle.phase is Phase.READY and self.worker.alive and not self.worker.restarting
