"""The memory plan: what the base, the KV cache and the adapters take, and whether there is that much.

Owns the arithmetic and the refusal. Imports no torch: free device memory comes in as a number, so that the
plan can be made, printed and tested before anything is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loader.errors import DoesNotFit, UnsupportedBase
from loader.memory import format_bytes

MIB = 1 << 20
HOST_RESERVE = 512 * MIB
"""The interpreter, torch, transformers and the activations of a step on the CPU (about 450 MiB were measured)."""
DEVICE_RESERVE = 1024 * MIB
KV_SHARE = 0.5
"""Of what is free after the base, the largest part an unset KV budget takes; and no more than KV_SEQUENCES need."""
KV_SEQUENCES = 8
ADAPTER_SHARE = 0.1
ADAPTER_MOST = 512 * MIB


@dataclass(frozen=True, slots=True)
class KVLayer:
    """Keys and values of one decoder layer: `heads` times `head_dim` numbers each, a token."""

    heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Budgets:
    """What the user asked for, in bytes; None lets the plan choose."""

    kv: int | None = None
    adapter_device: int | None = None
    adapter_host: int | None = None


@dataclass(frozen=True, slots=True)
class Available:
    """Free memory in bytes before the base is loaded. `device` is None when the base runs on the CPU."""

    host: int
    device: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the printed table. `place` is "device" or "host"; on the CPU everything is "host"."""

    name: str
    place: str
    bytes: int
    note: str


@dataclass(frozen=True, slots=True)
class ServingMemoryPlan:
    """The plan, in bytes, with the rows that explain it. `num_blocks` KV blocks of `block_size` tokens."""

    base_bytes: int
    num_blocks: int
    block_size: int
    kv_bytes: int
    adapter_device_bytes: int
    adapter_host_bytes: int
    rows: tuple[Row, ...]

    def table(self) -> str:
        """The rows in aligned columns, for a terminal without colours."""
        width = max(len(row.name) for row in self.rows)
        return "\n".join(
            f"{row.name:<{width}}  {row.place:<6}  {format_bytes(row.bytes):>9}  {row.note}".rstrip()
            for row in self.rows
        )


def kv_spec(config: Mapping[str, Any]) -> tuple[KVLayer, ...]:
    """Heads and head size of every decoder layer, from a full config (`PreTrainedConfig.to_dict()`).

    Raises UnsupportedBase when the config does not tell them.
    """
    text = config.get("text_config") or config
    layers, heads = text.get("num_hidden_layers"), text.get("num_attention_heads")
    if not isinstance(layers, int) or heads is None:
        raise UnsupportedBase("The config names no num_hidden_layers and num_attention_heads.")
    kv_heads = _per_layer(text.get("num_key_value_heads") or heads, layers)
    head_dim = text.get("head_dim") or text["hidden_size"] // _per_layer(heads, layers)[0]
    return tuple(map(KVLayer, kv_heads, _per_layer(head_dim, layers)))


def _per_layer(value: int | Sequence[int], layers: int) -> list[int]:
    values = [value] * layers if isinstance(value, int) else list(value)
    if len(values) != layers:
        raise UnsupportedBase(f"The config gives {len(values)} values for {layers} layers.")
    return values


def kv_bytes_per_token(spec: Sequence[KVLayer], itemsize: int) -> int:
    """Bytes of keys and values one token takes over all layers, at `itemsize` bytes a number."""
    return sum(2 * layer.heads * layer.head_dim * itemsize for layer in spec)


def plan(
    *,
    base_bytes: int,
    kv_token_bytes: int,
    max_model_len: int,
    available: Available,
    budgets: Budgets,
    block_size: int,
) -> ServingMemoryPlan:
    """Share the memory between base, KV cache and adapters.

    Budgets that are not given are chosen: adapters a tenth of what is free after the base, at most 512 MiB; the
    KV cache half of the rest, at most what 8 of the longest sequences need. Raises DoesNotFit with all numbers.
    """
    on_device = available.device is not None
    place = "device" if on_device else "host"
    room = available.host if available.device is None else available.device
    reserve = DEVICE_RESERVE if on_device else HOST_RESERVE
    free = max(0, room - base_bytes - reserve)
    adapter_device = _or(budgets.adapter_device, min(ADAPTER_MOST, int(free * ADAPTER_SHARE)))
    adapter_host = _or(budgets.adapter_host, min(ADAPTER_MOST, int(_host_free(available, free) * ADAPTER_SHARE)))
    block_bytes = kv_token_bytes * block_size
    enough = KV_SEQUENCES * -(-max_model_len // block_size) * block_bytes
    kv = _or(budgets.kv, min(enough, int(free * KV_SHARE)))
    num_blocks = kv // block_bytes
    result = ServingMemoryPlan(
        base_bytes=base_bytes,
        num_blocks=num_blocks,
        block_size=block_size,
        kv_bytes=num_blocks * block_bytes,
        adapter_device_bytes=adapter_device,
        adapter_host_bytes=adapter_host,
        rows=(
            Row("base weights", place, base_bytes, ""),
            Row(
                "KV cache",
                place,
                num_blocks * block_bytes,
                f"{num_blocks * block_size} tokens, {kv_token_bytes} B each",
            ),
            Row("adapters, in use", place, adapter_device, ""),
            Row("adapters, at hand", "host", adapter_host, ""),
            Row("runtime", place, reserve, "libraries and activations"),
            *((Row("runtime", "host", HOST_RESERVE, "libraries"),) if on_device else ()),
        ),
    )
    _check(result, place, room)
    if on_device:
        _check(result, "host", available.host)
    if num_blocks == 0:
        raise DoesNotFit(
            f"The KV budget of {format_bytes(kv)} holds no block of {block_size} tokens.\n{result.table()}\n"
            "Raise the KV budget, or lower the adapter budgets.",
            needed=block_bytes,
            available=kv,
        )
    return result


def _check(made: ServingMemoryPlan, place: str, room: int) -> None:
    needed = sum(row.bytes for row in made.rows if row.place == place)
    if needed > room:
        raise DoesNotFit(
            f"Out of {place} memory before the start: {format_bytes(needed)} needed, {format_bytes(room)} available.\n"
            f"{made.table()}\n"
            "Lower the KV or adapter budgets, quantize the base (--quantization nf4), or take a smaller base.",
            needed=needed,
            available=room,
        )


def _host_free(available: Available, free: int) -> int:
    return free if available.device is None else max(0, available.host - HOST_RESERVE)


def _or(given: int | None, chosen: int) -> int:
    return chosen if given is None else given
