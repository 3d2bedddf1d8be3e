"""What routes depend on: the services, who calls, and the server's willingness to take work.

Knows FastAPI's dependencies; owns nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ParamSpec, TypeVar

import anyio.to_thread
import structlog
from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from adapters.tenant_catalog import TenantCatalog
from server.errors import NO_RETRY, ApiError, Unauthorized
from server.ports import Services
from server.principal import Principal, Scope

P = ParamSpec("P")
T = TypeVar("T")

_INLINE_CHARACTERS = 4096  # about what a thread hop costs in tokenizing time


_SCHEME = HTTPBearer(auto_error=False, description="A key of `rootstock keys create`, on servers that ask for one.")


async def principal(request: Request, _: Annotated[object, Security(_SCHEME)] = None) -> Principal:
    """Who calls, found out once a request. Raises Unauthorized, and HostRefused for a web page without a key."""
    known: Principal | None = getattr(request.state, "principal", None)
    if known is not None:
        return known
    services: Services = request.app.state.services
    found = await services.authenticator.authenticate(request.headers.getlist("authorization"))
    if found is None:
        raise Unauthorized()
    if found.key:
        structlog.contextvars.bind_contextvars(tenant=found.tenant, key=found.key)
    else:
        services.host_check.check(request.headers.get("host", ""), request.headers.get("origin"))
    request.state.principal = found
    return found


PrincipalDep = Annotated[Principal, Depends(principal)]


async def server(request: Request) -> Services:
    """The server's services, for what is told to whoever asks."""
    found: Services = request.app.state.services
    return found


ServerDep = Annotated[Services, Depends(server)]


async def services(found: ServerDep, caller: PrincipalDep) -> Services:
    """The services as the caller's tenant has them. A route that takes them cannot see past its caller's catalog."""
    return replace(found, tenant_catalog=TenantCatalog(found.server_catalog, caller.tenant))


ServicesDep = Annotated[Services, Depends(services)]


async def accepting(services: ServicesDep) -> None:
    """Refuse new work while the server loads or drains."""
    services.lifecycle.check()


@dataclass(frozen=True, slots=True)
class RequireScope:
    """A route's guard: refuse callers without a valid key, and those whose key does not allow `scope`.

    It stands at the route itself and never at a path's prefix, which a request can spell anew.
    """

    scope: Scope

    async def __call__(self, caller: PrincipalDep) -> None:
        if not caller.may(self.scope):
            message = f"This key lacks the scope `{self.scope}`. Use one that has it, or have one made with it."
            raise ApiError(403, message, type="permission_error", code="scope_missing", headers=NO_RETRY)


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(*args)` in a worker thread: for the catalog, which reads and writes the disk."""
    return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs))


async def in_upload_thread(services: Services, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(*args)` in one of the few threads for uploads, so that many of them leave the others to the requests."""
    return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=services.upload_limiter)


async def off_loop(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(*args)`; in a thread when `size` characters would hold up everybody else's tokens."""
    if size <= _INLINE_CHARACTERS:
        return work(*args, **kwargs)
    return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs))
