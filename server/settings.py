"""Every setting of the server, in one place: flags, then the environment, then a file, then defaults.

Owns `Settings` and `read_settings`. Nothing else in the project reads the environment or a settings file.
"""

import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as UnreadableSource

from loader.dtypes import Dtype
from server.quotas.quota import Quota

DEFAULT_FILE = Path("rootstock.toml")
_MIB = 1 << 20
TABLES = frozenset({"quota", "tenants"})
"""Settings that no flag spells: tables of the file, or JSON in the environment."""
MANY = {"adapters": ("--adapter", "NAME=DIR"), "trusted_hosts": ("--trusted-host", "NAME")}
"""Settings whose flag is given once for each value: the flag, and what follows it."""
_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
_FREE = "default: from what is free"
_PREFIX = "ROOTSTOCK_"
_NEAR = 0.75


class SettingsError(Exception):
    """A setting has a value that cannot be used; the text names the setting and where it may be set."""


class Settings(BaseSettings):
    """One server's settings. Sizes are bytes and may be written `512MiB`; times are seconds."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    base: Annotated[str, Field(description="`embedded`, a directory, a .gguf file or a hub id.")] = "embedded"
    dtype: Annotated[Dtype, Field(description="Precision of the weights.")] = "bfloat16"
    quantization: Annotated[Literal["nf4", "fp4"] | None, Field(description="4-bit base (bitsandbytes).")] = None
    allow_quantization_mismatch: Annotated[
        bool, Field(description="Serve adapters that were trained on this base in another quantization.")
    ] = False
    kernels: Annotated[
        Literal["auto", "off"], Field(description="CPU kernels, compiled once by the C++ compiler that is found.")
    ] = "auto"
    device: Annotated[str, Field(description="`auto`, `cpu`, `cuda` or `cuda:1`.")] = "auto"
    cuda_graphs: Annotated[
        bool, Field(description="Record decode steps as CUDA graphs; takes up to half of the adapters' device memory.")
    ] = True
    tool_call_parser: Annotated[
        Literal[
            "auto",
            "hermes",
            "llama3_json",
            "mistral",
            "mistral_args",
            "smollm2",
            "qwen3_coder",
            "granite",
            "phi4_mini_json",
        ],
        Field(description="How the base spells calls of functions; `auto`: as its chat template has it."),
    ] = "auto"
    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    keys: Annotated[
        Literal["auto", "on", "off"], Field(description="Ask for API keys; `auto`: once there are any.")
    ] = "auto"
    keys_pepper_file: Annotated[
        Path | None, Field(description="The pepper of the keys; default: keys.pepper in the data directory.")
    ] = None
    trusted_hosts: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="Extra host names accepted in Host and Origin when no keys are asked for."),
    ] = ()
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 8000
    data_dir: Annotated[Path, Field(description="Where adapters, the registry and converted bases live.")] = (
        Path.home() / ".local" / "share" / "rootstock"
    )
    adapters: Annotated[dict[str, Path], NoDecode, Field(description="NAME=DIR, adapters to add at start.")] = Field(
        default_factory=dict
    )
    adapter_root: Annotated[Path | None, Field(description="Directory from which load_lora_adapter may load.")] = None
    kv_cache_memory: Annotated[ByteSize | None, Field(gt=0, description=f"Budget of the KV cache; {_FREE}.")] = None
    adapter_device_memory: Annotated[ByteSize | None, Field(gt=0, description=f"Adapters on the device; {_FREE}.")] = (
        None
    )
    adapter_host_memory: Annotated[ByteSize | None, Field(ge=0, description=f"Adapters in host memory; {_FREE}.")] = (
        None
    )
    max_batch_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            description="Tokens computed in one step; default: 256, and 2048 on a GPU. More make prompts faster"
            " where a step's launches cost more than its tokens, and everybody waits for a step that has begun.",
        ),
    ] = None
    max_sequences: Annotated[int, Field(ge=1, description="Sequences in one batch.")] = 64
    max_waiting: Annotated[int, Field(ge=1, description="Sequences of one tenant that may wait; beyond it, 429.")] = 512
    max_connections: Annotated[int, Field(ge=1, description="Connections at once; idle ones make room.")] = 2048
    max_unread_tokens: Annotated[
        int, Field(ge=256, description="Tokens of one choice that may wait for a slow reader; then its request ends.")
    ] = 2048
    max_model_len: Annotated[int | None, Field(ge=2, description="Context in tokens; default: the base's.")] = None
    block_size: Annotated[
        int | None, Field(ge=1, le=256, description="Tokens in a block of the KV cache; default: 16, on CUDA 256.")
    ] = None
    drain_timeout: Annotated[float, Field(ge=0, description="Seconds that running requests get at shutdown.")] = 30.0
    max_upload_bytes: Annotated[ByteSize, Field(gt=0, description="Largest adapter that may be uploaded.")] = ByteSize(
        2048 * _MIB
    )
    validation_memory: Annotated[ByteSize, Field(ge=40 * _MIB, description="Memory to read one upload.")] = ByteSize(
        512 * _MIB
    )
    validation_timeout: Annotated[float, Field(gt=0, description="Seconds to read one upload.")] = 120.0
    max_uploads: Annotated[int, Field(ge=1, description="Resumable uploads that a tenant may have open.")] = 16
    max_total_uploads: Annotated[
        int, Field(ge=1, description="Resumable uploads that all tenants together may have open; beyond it, 503.")
    ] = 256
    max_pending_bytes: Annotated[
        ByteSize, Field(gt=0, description="Declared bytes that one tenant's open uploads may total.")
    ] = ByteSize(8192 * _MIB)
    upload_expiry: Annotated[float, Field(gt=0, description="Seconds until a resumable upload is forgotten.")] = 86400.0
    max_body_bytes: Annotated[ByteSize, Field(gt=0, description="Largest JSON body.")] = ByteSize(4 * _MIB)
    idle_timeout: Annotated[float, Field(gt=0, description="Seconds a client may neither send nor read.")] = 30.0
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="Lowest level shown.")] = (
        "info"
    )
    log_format: Annotated[Literal["auto", "console", "json"], Field(description="`auto`: console on a terminal.")] = (
        "auto"
    )
    otlp_endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^/]+(/.*)?$",
            description="OpenTelemetry collector (OTLP over HTTP) that is sent traces; needs the extra `otel`.",
        ),
    ] = None
    usage_ledger: Annotated[
        Literal["on", "off"], Field(description="Write down what every request used, for `rootstock usage`.")
    ] = "on"
    quota: Annotated[Quota, Field(description="What each tenant may use; a table.")] = Quota()
    tenants: Annotated[dict[str, Quota], Field(description="What single tenants may use instead; tables.")] = Field(
        default_factory=dict
    )
    config: Annotated[Path | None, Field(description="Settings file; default: ./rootstock.toml.")] = None

    def tenant_quotas(self) -> dict[str, Quota]:
        """The whole quota of every tenant that has a table of its own."""
        return {tenant: self.quota.overridden(own) for tenant, own in self.tenants.items()}

    @field_validator("trusted_hosts", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """A list, or the same with commas from the environment."""
        names = [str(name).strip().lower() for name in (value.split(",") if isinstance(value, str) else value)]
        if not all(map(_HOST.fullmatch, names)):
            raise ValueError("write names without scheme and port, such as llm.example.org")
        return tuple(names)

    @field_validator("adapters", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        """A table from a file, or `NAME=DIR` strings from flags, or the same with commas from the environment."""
        if isinstance(value, Mapping):
            return value
        items = value.split(",") if isinstance(value, str) else value
        pairs = [str(item).partition("=") for item in items if str(item).strip()]
        if any(not (name and directory) for name, _, directory in pairs):
            raise ValueError("write NAME=DIR")
        return {name.strip(): Path(directory.strip()) for name, _, directory in pairs}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        assert isinstance(init_settings, InitSettingsSource)
        named = init_settings.init_kwargs.get("config") or env_settings().get("config")
        if named is not None and not Path(named).is_file():
            what = "no file" if Path(named).exists() else "not there"
            raise SettingsError(f"--config (or ROOTSTOCK_CONFIG): the settings file {named} is {what}.")
        file = TomlConfigSettingsSource(settings_cls, Path(named) if named else DEFAULT_FILE)
        return init_settings, env_settings, file


def read_settings(flags: Mapping[str, object]) -> Settings:
    """The settings that hold, given the flags that were typed; a flag that is None was not. Raises SettingsError."""
    typed = {name: value for name, value in flags.items() if value is not None and value != []}
    _check_names(os.environ)
    try:
        return Settings(**typed)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError(
            "\n".join(_told(fault["type"], fault["loc"], fault["msg"]) for fault in error.errors())
        ) from None
    except UnreadableSource as error:  # only tables are read as JSON; all else stays as it was typed
        name = "ROOTSTOCK_TENANTS" if '"tenants"' in str(error) else "ROOTSTOCK_QUOTA"
        raise SettingsError(f'{name} is no JSON. Write an object, such as {{"adapters": 5}}.') from None
    except ValueError as error:
        raise SettingsError(f"The settings file cannot be read: {error}") from None


def _check_names(environment: Iterable[str]) -> None:
    """Raises SettingsError for a variable that is nearly a setting.

    Others are let be: commands have some, and Kubernetes makes some for a service of this name, such as
    ROOTSTOCK_SERVICE_HOST.
    """
    names = [name.upper() for name in Settings.model_fields]
    for variable in environment:
        prefix, name = variable[: len(_PREFIX)].upper(), variable[len(_PREFIX) :].upper()
        if prefix != _PREFIX or name in names:
            continue
        if near := get_close_matches(name, names, n=1, cutoff=_NEAR):
            raise SettingsError(f"{variable} in the environment is no setting. Did you mean `{_PREFIX}{near[0]}`?")


def _told(kind: str, loc: tuple[int | str, ...], message: str) -> str:
    """One fault, with the place where its setting may be spelt."""
    if kind != "extra_forbidden":
        return f"{_spelled(loc)}: {message.removeprefix('Value error, ')}"
    known = Quota.model_fields if loc[0] in TABLES else Settings.model_fields
    near = get_close_matches(str(loc[-1]), known, n=1)
    table = f"[{'.'.join(map(str, loc[:-1]))}] " if loc[:-1] else ""
    hint = f"Did you mean `{near[0]}`?" if near else "docs/settings.md lists them."
    return f"{table}{loc[-1]} in the settings file is no setting. {hint}"


def _spelled(loc: tuple[int | str, ...]) -> str:
    name = str(loc[0])
    if name in TABLES:
        return f"[{'.'.join(map(str, loc[:-1]))}] {loc[-1]} in the settings file (or ROOTSTOCK_{name.upper()}, as JSON)"
    flag = MANY[name][0] if name in MANY else f"--{name.replace('_', '-')}"
    return f"{flag} (or ROOTSTOCK_{name.upper()}, or `{name}` in the settings file)"
