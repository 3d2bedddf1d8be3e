"""What routes depend on: the services, and the server's willingness to take work.

Knows FastAPI's dependencies; owns nothing else.
"""

from collections.abc import Callable
from typing import Annotated, ParamSpec, TypeVar

import anyio.to_thread
from fastapi import Depends, Request

from server.errors import ApiError
from server.ports import Services
from server.principal import ANYONE, Principal, Scope

P = ParamSpec("P")
T = TypeVar("T")

_INLINE_CHARACTERS = 4096  # about what a thread hop costs in tokenizing time


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(services)]


def accepting(services: ServicesDep) -> None:
    """Refuse new work while the server loads or drains."""
    services.lifecycle.check()


def principal() -> Principal:
    """Who calls. Without keys that is anyone, and anyone may do everything."""
    return ANYONE


PrincipalDep = Annotated[Principal, Depends(principal)]


def needs(scope: Scope) -> Callable[[Principal], None]:
    """A route's dependency: refuse callers whose key does not allow `scope`."""

    def check(caller: PrincipalDep) -> None:
        if not caller.may(scope):
            message = f"This key lacks the scope `{scope}`. Use one that has it, or have one made with it."
            raise ApiError(403, message, type="permission_error", code="scope_missing")

    return check


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(*args)` in a worker thread: for the catalog, which reads and writes the disk."""
    return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs))


async def off_loop(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(*args)`; in a thread when `size` characters would hold up everybody else's tokens."""
    if size <= _INLINE_CHARACTERS:
        return work(*args, **kwargs)
    return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs))
