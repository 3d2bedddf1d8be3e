"""vLLM's /v1/load_lora_adapter and /v1/unload_lora_adapter, with vLLM's bodies and replies.

Owns those routes and the rule that a path must lie under the adapter root. Loading adds a version to the
catalog, so what was loaded survives a restart; unloading deletes the name.
"""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from adapters.errors import NameInvalid, UnknownAdapter
from adapters.header import FILE
from server.audit import note_upload
from server.body import StrictRoute
from server.deletion import delete_adapter
from server.deps import PrincipalDep, RequireScope, ServicesDep, accepting, in_thread, in_upload_thread
from server.errors import ApiError, api_error
from server.pins import follow_pins_if_possible
from server.ports import Services
from server.principal import Scope
from server.strict import Strict
from server.upload_quota import upload_quota

router = APIRouter(route_class=StrictRoute, dependencies=[Depends(accepting)], tags=["vllm"])


class LoadBody(Strict):
    lora_name: Annotated[str, Field(min_length=1, max_length=512)]
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool = False
    is_3d_lora_weight: Annotated[bool, Field(description="Only false is served.")] = False
    base_model_name: Annotated[str | None, Field(max_length=512, description="Has no effect.")] = None


class UnloadBody(Strict):
    lora_name: Annotated[str, Field(min_length=1, max_length=512)]
    lora_int_id: Annotated[int | None, Field(description="Has no effect: adapters go by name.")] = None


class VllmError(ApiError):
    """vLLM's kinds: `InvalidUserInput`, `NotFoundError`, `BadRequestError`."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(status, message, type=kind, param=param, code=status)


@router.post(
    "/v1/load_lora_adapter", response_class=PlainTextResponse, dependencies=[Depends(RequireScope(Scope.ADMIN))]
)
async def load_lora_adapter(body: LoadBody, services: ServicesDep, caller: PrincipalDep) -> Response:
    """Add an adapter from a directory under `--adapter-root`."""
    if body.is_3d_lora_weight:
        raise VllmError(400, "BadRequestError", "Fused expert weights cannot carry adapters here.", "is_3d_lora_weight")
    _check_name(services, body.lora_name)
    path = await in_thread(directory_under, services.adapter_root, body.lora_path)
    if not body.load_inplace and await _exists(services, body.lora_name):
        raise VllmError(
            400,
            "InvalidUserInput",
            "An adapter of this name is loaded already. Send `load_inplace: true` to add a version to it.",
            "lora_name",
        )
    async with upload_quota(await in_thread(_weights_bytes, path), services, caller) as quota:
        await quota.begin()
        await quota.end(body.lora_name)
        version, created = await in_upload_thread(services, services.tenant_catalog.add_directory, body.lora_name, path)
    await follow_pins_if_possible(services)
    note_upload(version, created)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post(
    "/v1/unload_lora_adapter", response_class=PlainTextResponse, dependencies=[Depends(RequireScope(Scope.WRITE))]
)
async def unload_lora_adapter(body: UnloadBody, services: ServicesDep) -> Response:
    """Delete an adapter by name."""
    if not await _exists(services, body.lora_name):
        raise VllmError(404, "NotFoundError", "There is no adapter of this name.", "lora_name")
    await delete_adapter(services, body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def directory_under(root: Path | None, path: str) -> Path:
    """The real directory that `path` means. Raises VllmError; what lies outside `root` reads as absent."""
    if root is None:
        raise VllmError(
            403, "BadRequestError", "Server paths are off. Start the server with --adapter-root DIR, or upload instead."
        )
    absent = VllmError(404, "NotFoundError", "No adapter directory is there under the adapter root.", "lora_path")
    if "://" in path:
        raise VllmError(400, "BadRequestError", "`lora_path` is a directory, never a URL.", "lora_path")
    try:
        found = (root / path).resolve(strict=True)
        true_root = root.resolve(strict=True)
        files = [file.resolve() for file in found.iterdir()] if found.is_dir() else []  # links may lead out again
        inside = bool(files) and all(path.is_relative_to(true_root) for path in (found, *files))
    except (OSError, ValueError, RuntimeError):
        raise absent from None
    if not inside:
        raise absent
    return found


def _weights_bytes(directory: Path) -> int:
    """What the quotas hold it to; of what has no weights nothing will be stored."""
    weights = directory / FILE
    return weights.stat().st_size if weights.is_file() else 0


def _check_name(services: Services, name: str) -> None:
    """Raises what an upload under this name would be refused with, by the name that vLLM gives the field."""
    try:
        services.tenant_catalog.check_names(name, None)
    except NameInvalid as error:
        refusal = api_error(error)
        assert refusal is not None, "the table has a row for names"
        refusal.param = "lora_name"
        raise refusal from None


async def _exists(services: Services, name: str) -> bool:
    try:
        return bool(await in_thread(services.tenant_catalog.versions, name))
    except UnknownAdapter:
        return False
