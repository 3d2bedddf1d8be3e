"""The memory plan: arithmetic, automatic budgets and refusals, without torch."""

import pytest

from loader.errors import DoesNotFit, UnsupportedBase
from loader.plan import (
    HOST_RESERVE,
    MIB,
    Available,
    Budgets,
    KVLayer,
    ServingMemoryPlan,
    kv_bytes_per_token,
    kv_spec,
    plan,
)

SMOLLM2 = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}


def made(available: Available, budgets: Budgets) -> ServingMemoryPlan:
    return plan(
        base_bytes=270 * MIB,
        kv_token_bytes=23040,
        max_model_len=8192,
        available=available,
        budgets=budgets,
        block_size=16,
    )


def test_kv_bytes_of_a_known_model() -> None:
    spec = kv_spec(SMOLLM2)
    assert spec == (KVLayer(3, 64),) * 30
    assert kv_bytes_per_token(spec, itemsize=2) == 2 * 30 * 3 * 64 * 2


def test_kv_spec_reads_nested_and_per_layer_values() -> None:
    text = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": [4, 2], "head_dim": 32}
    assert kv_spec({"text_config": text}) == (KVLayer(4, 32), KVLayer(2, 32))


def test_kv_spec_without_kv_heads_takes_the_query_heads() -> None:
    assert kv_spec({"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 64}) == (KVLayer(4, 16),)


@pytest.mark.parametrize("config", [{}, {**SMOLLM2, "num_key_value_heads": [3, 3]}])
def test_kv_spec_refuses_a_config_that_does_not_tell(config: dict[str, object]) -> None:
    with pytest.raises(UnsupportedBase):
        kv_spec(config)


def test_given_budgets_are_kept() -> None:
    plan_ = made(Available(host=4096 * MIB), Budgets(kv=256 * MIB, adapter_device=64 * MIB, adapter_host=32 * MIB))
    assert plan_.num_blocks == 256 * MIB // (23040 * 16)
    assert plan_.kv_bytes == plan_.num_blocks * 23040 * 16 <= 256 * MIB
    assert (plan_.adapter_device_bytes, plan_.adapter_host_bytes) == (64 * MIB, 32 * MIB)


def test_chosen_budgets_fit_and_do_not_grow_without_bound() -> None:
    small, large = made(Available(host=1200 * MIB), Budgets()), made(Available(host=1 << 40), Budgets())
    assert sum(row.bytes for row in small.rows) <= 1200 * MIB
    assert large.kv_bytes == 8 * 8192 * 23040
    assert large.adapter_device_bytes == 512 * MIB


def test_refusal_has_the_numbers_and_the_way_out() -> None:
    with pytest.raises(DoesNotFit) as refused:
        made(Available(host=1024 * MIB), Budgets(kv=2048 * MIB))
    assert refused.value.available == 1024 * MIB
    assert refused.value.needed > 2048 * MIB + 270 * MIB + HOST_RESERVE
    for word in ("1.0 GiB available", "KV cache", "base weights", "--quantization"):
        assert word in str(refused.value)


def test_a_base_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(DoesNotFit):
        made(Available(host=700 * MIB), Budgets())


def test_a_kv_budget_below_one_block_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="holds no block"):
        made(Available(host=4096 * MIB), Budgets(kv=23040 * 15))


def test_on_a_device_the_base_does_not_count_against_the_host() -> None:
    plan_ = made(Available(host=2048 * MIB, device=8192 * MIB), Budgets())
    assert {row.name for row in plan_.rows if row.place == "host"} == {"adapters, at hand", "runtime"}
    with pytest.raises(DoesNotFit, match="host memory"):
        made(Available(host=600 * MIB, device=8192 * MIB), Budgets(adapter_host=256 * MIB))


def test_table_has_a_line_for_every_row() -> None:
    plan_ = made(Available(host=4096 * MIB), Budgets())
    lines = plan_.table().splitlines()
    assert len(lines) == len(plan_.rows)
    assert "270 MiB" in lines[0]
    assert f"{plan_.num_blocks * 16} tokens" in lines[1]
