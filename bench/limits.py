"""`rootstock bench limits BASE`: what a decode step cannot do without, by the bytes that it must read.

Owns the arithmetic and one measurement, of this machine's memory. Loads no model.

A step of B rows reads every linear weight and the head once, the keys and values of all tokens before it, and the A
and B of each adapter that is in the batch. Divided by the measured bandwidth that is a floor under its time. It is no
floor where products, not memory, are what takes time: `bench step` measures those.
"""

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from bench import options, report, weight_shapes
from bench.terminal import terminal
from bench.weight_shapes import Linear

BF16 = 2.0
NF4 = 0.5 + 4 / 64
"""Bytes a weight in 4 bits, with one fp32 scale for each block of 64."""


@dataclass(frozen=True, slots=True)
class Floor:
    """Bytes that one decode step reads."""

    weights: float
    kv: float
    adapters: float

    def seconds(self, bytes_per_s: float) -> float:
        return (self.weights + self.kv + self.adapters) / bytes_per_s


def adapter_bytes(linears: Iterable[Linear], rank: int) -> float:
    """Of one adapter on all of `linears`, in bf16: `2 · Σ r · (in + out)`."""
    return BF16 * sum(rank * (linear.in_features + linear.out_features) for linear in linears)


def kv_bytes_per_token(linears: Iterable[Linear]) -> float:
    """Keys and values of one token over all layers, in bf16: what `k_proj` and `v_proj` put out."""
    return BF16 * sum(linear.out_features for linear in linears if linear.module in ("k_proj", "v_proj"))


def floor(directory: Path, rows: int, context: int, adapters: int, rank: int, weight_bytes: float = BF16) -> Floor:
    """Of a step of `rows` sequences with `context` tokens each and `adapters` distinct adapters of `rank`.

    The head stays in bf16 when the layers are 4-bit. Raises as `bench.weight_shapes` does.
    """
    linears = weight_shapes.linears(directory)
    layers = sum(linear.in_features * linear.out_features for linear in linears)
    return Floor(
        weights=weight_bytes * layers + BF16 * weight_shapes.head_weights(directory),
        kv=rows * context * kv_bytes_per_token(linears),
        adapters=min(adapters, rows) * adapter_bytes(linears, rank),
    )


def read_bandwidth(megabytes: int = 512, repeats: int = 5) -> float:
    """Bytes a second at which all cores together read memory, the fastest of `repeats`."""
    cores = os.cpu_count() or 1
    parts = np.array_split(np.ones(megabytes * 2**20 // 4, np.float32), cores)
    fastest = float("inf")
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(repeats):
            began = time.perf_counter()
            list(pool.map(np.sum, parts))
            fastest = min(fastest, time.perf_counter() - began)
    return sum(part.nbytes for part in parts) / fastest


def main(
    base: options.BaseFolder,
    rows: Annotated[
        list[int] | None,
        typer.Option(min=1, show_default="1, 8, 16", help="Requests in the batch; repeat for several numbers."),
    ] = None,
    context: options.Context = 160,
    adapters: options.AdaptersInBatch = 8,
    rank: options.Rank = 16,
) -> None:
    """Compute the floor under a decode step by the bytes it reads, at this machine's measured bandwidth."""
    weight_shapes.head_weights(base)  # a directory that is no base is told before anything is measured
    bandwidth = read_bandwidth()
    table = Table(title=f"{base.name}: at most, at {bandwidth / 1e9:.1f} GB/s, {adapters} adapters r={rank}")
    for column in ("weights", "rows", "weights MB", "KV MB", "adapters MB", "base step", "mixed step", "base tok/s"):
        table.add_column(column, justify="right")
    table.add_column("mixed tok/s", justify="right")
    for name, weight_bytes in (("bf16", BF16), ("NF4", NF4)):
        for count in rows or [1, 8, 16]:
            plain = floor(base, count, context, 0, rank, weight_bytes)
            mixed = floor(base, count, context, adapters, rank, weight_bytes)
            steps = [one.seconds(bandwidth) for one in (plain, mixed)]
            megabytes = (mixed.weights / 1e6, mixed.kv / 1e6, mixed.adapters / 1e6)
            table.add_row(
                name,
                str(count),
                *(f"{one:.1f}" for one in megabytes),
                *(f"{1e3 * step:.1f} ms" for step in steps),
                *(f"{count / step:.0f}" for step in steps),
            )
    console = terminal()
    console.print(table)
    setting = report.machine()
    console.print(f"{setting['processor']}, {setting['cores']} cores, load {setting['load']:.2f}")
