"""The small pure parts of the rig: settings, fields, log-probabilities, labels, phases."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.samples import Sample

from adapters.manifest import AdapterId
from engine.events import (
    AdapterEvicted,
    AdapterFailed,
    AdapterLoaded,
    Admitted,
    Finished,
    FirstToken,
    NextToken,
    Preempted,
    StepDone,
)
from engine.sequence import FinishReason, Output, TokenLogprob
from server.answer import fold
from server.body import parse_json
from server.datadir import DataDir, DataDirInUse, DataDirUnusable
from server.errors import TABLE, BadRequest, Draining, NotReady, api_error
from server.lifecycle import Lifecycle
from server.logprobs import CompletionLogprobs, chat_logprobs
from server.loop_lag import watch_loop_lag
from server.metrics import MAX_ADAPTER_LABELS, AdapterLabels, Metrics
from server.resolve import reference
from server.settings import SettingsError, read_settings
from tests.support.tokenizer import ByteTokenizer


def id_of(number: int) -> AdapterId:
    return AdapterId(f"sha256:{number:012x}{0:052x}")


def test_settings_come_from_flags_then_environment_then_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my.toml"
    file.write_text('host = "file"\nport = 1\nmax_sequences = 3\n[adapters]\nq = "d"\n')
    monkeypatch.setenv("ROOTSTOCK_PORT", "2")
    monkeypatch.setenv("ROOTSTOCK_MAX_SEQUENCES", "4")
    made = read_settings({"config": str(file), "max_sequences": "5", "base": None, "adapters": []})
    assert (made.host, made.port, made.max_sequences, made.base) == ("file", 2, 5, "embedded")
    assert made.adapters == {"q": Path("d")}


def test_settings_read_sizes_and_pairs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    made = read_settings({"kv_cache_memory": "1GiB", "adapters": ["a=/x", "b=/y=z"]})
    assert made.kv_cache_memory == 1 << 30
    assert made.adapters == {"a": Path("/x"), "b": Path("/y=z")}
    monkeypatch.setenv("ROOTSTOCK_ADAPTERS", "c=1, d=2")
    assert read_settings({}).adapters == {"c": Path("1"), "d": Path("2")}
    assert read_settings({"trusted_hosts": ["LLM.example.org"]}).trusted_hosts == ("llm.example.org",)
    monkeypatch.setenv("ROOTSTOCK_TRUSTED_HOSTS", "a.example, [::2]")
    assert read_settings({}).trusted_hosts == ("a.example", "[::2]")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"port": "x"}, "--port"),
        ({"adapters": ["a"]}, "--adapter .*NAME=DIR"),
        ({"trusted_hosts": ["https://llm.example.org"]}, "--trusted-host .*without scheme"),
        ({"trusted_hosts": ["llm.example.org:8000"]}, "ROOTSTOCK_TRUSTED_HOSTS"),
        ({"dtype": "int8"}, "--dtype"),
        ({"kv_cache_memory": "much"}, "ROOTSTOCK_KV_CACHE_MEMORY"),
        ({"config": "nowhere.toml"}, "nowhere.toml"),
    ],
)
def test_bad_settings_name_themselves(flags: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        read_settings(flags)


def test_an_unknown_key_in_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rootstock.toml").write_text("prot = 1\n")
    with pytest.raises(SettingsError, match="prot"):
        read_settings({})


def test_json_is_read_strictly() -> None:
    assert parse_json('{"a": [1, 2.5, "é", null]}'.encode()) == {"a": [1, 2.5, "é", None]}
    with pytest.raises(BadRequest, match="twice"):
        parse_json(b'{"a": {"b": 1, "b": 1}}')


def test_references() -> None:
    assert reference("base", None, "base") is None
    assert reference("", None, "base") is None
    assert reference("base:a@2", None, "base") == "a@2"
    assert reference("org/base:a", None, "org/base") == "a"
    assert reference("base", "a", "base") == "a"
    assert reference("base:a", "a", "base") == "a"
    assert reference("base", "base", "base") is None
    with pytest.raises(BadRequest):
        reference("a", "", "base")


def test_every_error_of_the_table_has_a_code_and_permanent_ones_are_not_retried() -> None:
    for kind, row in TABLE:
        assert 400 <= row.status < 600, kind
        assert row.code
        if row.status in (409, 507):  # clients retry a 409 by themselves, unless they are told when, or not to
            assert row.headers.get("x-should-retry") == "false" or "retry-after" in row.headers, kind
        if row.status in (429,):
            assert row.headers["retry-after"]
    assert api_error(ValueError("x")) is None


def test_a_row_is_not_hidden_by_its_parent() -> None:
    kinds = [kind for kind, _ in TABLE]
    for place, kind in enumerate(kinds):
        assert not any(issubclass(kind, earlier) for earlier in kinds[:place]), kind


def test_fold_joins_outputs() -> None:
    report = TokenLogprob(1, -1.0)
    parts = [
        Output(prompt_logprobs=(None,)),
        Output(text="a", token_ids=(1,), logprobs=(report,)),
        Output(text="b", token_ids=(2, 3), finish_reason=FinishReason.STOP, stop_reason="x"),
    ]
    whole = fold(parts)
    assert (whole.text, whole.token_ids, whole.logprobs) == ("ab", (1, 2, 3), (report,))
    assert (whole.prompt_logprobs, whole.finish_reason, whole.stop_reason) == ((None,), "stop", "x")


def test_completion_logprobs_place_tokens_in_the_text() -> None:
    made = CompletionLogprobs(ByteTokenizer())
    ids = list("né".encode())
    block = made.prompt("né", ids, [None, TokenLogprob(ids[1], -1.0), TokenLogprob(ids[2], float("-inf"))])
    assert block["tokens"] == ["n", "bytes:\\xc3", "bytes:\\xa9"]
    assert block["text_offset"] == [0, 1, 1]
    assert block["token_logprobs"] == [None, -1.0, -9999.0]
    after = made.generated([TokenLogprob(120, -0.5, ((121, -0.1),))])
    assert after["text_offset"] == [2]
    assert after["top_logprobs"] == [{"y": -0.1, "x": -0.5}]


def test_a_begin_token_takes_no_room_in_the_text() -> None:
    block = CompletionLogprobs(ByteTokenizer()).prompt("hi", [256, 104, 105], [None, TokenLogprob(104, -1), None])
    assert block["text_offset"] == [0, 0, 1]


def test_chat_logprobs_keep_bytes() -> None:
    content = chat_logprobs(ByteTokenizer(), [TokenLogprob(0xC3, -1.0, ((120, -0.5),))])["content"]
    assert content[0]["bytes"] == [0xC3]
    assert content[0]["top_logprobs"] == [{"token": "x", "logprob": -0.5, "bytes": [120]}]


def test_adapter_labels_are_bounded() -> None:
    labels = AdapterLabels()
    seen = {labels.label_for(id_of(number)) for number in range(500)}
    assert len(seen) == MAX_ADAPTER_LABELS + 1
    assert labels.label_for(None) == "base"
    assert labels.label_for(id_of(499)) == "other"


def test_labels_of_compared_versions_are_bounded_too() -> None:
    """When adapters have taken all labels, there are as many again for canaries' versions, and no more."""
    labels = AdapterLabels()
    for number in range(500):
        labels.label_for(id_of(number))
    first = labels.label_for(id_of(0))
    labels.compare(id_of(number) for number in (0, *range(1000, 1500)))
    compared = {labels.label_for(id_of(number)) for number in range(1000, 1500)}
    assert len(compared) == MAX_ADAPTER_LABELS + 1 and "other" in compared
    assert labels.label_for(id_of(1000)) != "other" == labels.label_for(id_of(1499))
    assert labels.label_for(id_of(0)) == first != "other", "whoever has a label keeps it"


def test_labels_of_canaries_that_ended_are_given_to_others() -> None:
    """However many there were, those that run have labels, and nothing is left of what was counted under another."""
    metrics = Metrics()
    for number in range(MAX_ADAPTER_LABELS):
        metrics.observe(finished(id_of(number)))
    for canary in range(1000, 1000 + 4 * MAX_ADAPTER_LABELS, 2):
        metrics.compare(lambda canary=canary: [id_of(canary), id_of(canary + 1)])  # type: ignore[misc]
        for adapter in (id_of(0), id_of(canary), id_of(canary + 1)):
            metrics.observe(finished(adapter))
        assert "other" not in (metrics.labels.label_for(id_of(canary)), metrics.labels.label_for(id_of(canary + 1)))
    shown = {sample.labels["adapter"] for sample in samples(metrics, "rootstock_requests_total")}
    assert len(shown) == MAX_ADAPTER_LABELS + 2
    metrics.compare(list)
    metrics.observe(finished(id_of(1000)))
    assert metrics.labels.label_for(id_of(1000)) == "other"
    shown = {sample.labels["adapter"] for sample in samples(metrics, "rootstock_requests_total")}
    assert len(shown) == MAX_ADAPTER_LABELS + 1


def finished(adapter: AdapterId) -> Finished:
    return Finished("r", adapter, FinishReason.LENGTH, 1, 0.1)


def samples(metrics: Metrics, name: str) -> list[Sample]:
    return [each for family in metrics.registry.collect() for each in family.samples if each.name == name]


def test_metrics_count_every_event() -> None:
    metrics = Metrics()
    one = id_of(1)
    for event in (
        Admitted("r", one, "disk", 0.1, 0.0, 10, 4),
        FirstToken("r", one, 0.2),
        NextToken(one, 0.02),
        Finished("r", one, FinishReason.STOP, 7, 1.0),
        AdapterLoaded(one, "disk", 0.4, 1000),
        AdapterEvicted(one, "device"),
        AdapterFailed(one, "adapter_corrupt"),
        Preempted("r", None),
        StepDone(0.01, 5, 2),
    ):
        metrics.observe(event)
    metrics.loop_lag(0.3)
    text = generate_latest(metrics.registry).decode()
    label = labels_of(one)
    for line in (
        f'rootstock_requests_total{{adapter="{label}",reason="stop"}} 1.0',
        f'rootstock_prompt_tokens_total{{adapter="{label}"}} 10.0',
        f'rootstock_cached_tokens_total{{adapter="{label}"}} 4.0',
        f'rootstock_generated_tokens_total{{adapter="{label}"}} 7.0',
        f'rootstock_adapter_tier_hits_total{{adapter="{label}",tier="disk"}} 1.0',
        f'rootstock_adapter_loaded_bytes_total{{adapter="{label}",tier="disk"}} 1000.0',
        f'rootstock_adapter_evictions_total{{adapter="{label}",tier="device"}} 1.0',
        f'rootstock_adapter_load_failures_total{{adapter="{label}",code="adapter_corrupt"}} 1.0',
        "rootstock_preemptions_total 1.0",
        f'rootstock_adapter_loads_total{{adapter="{label}",tier="disk"}} 1.0',
        "rootstock_queue_seconds_sum 0.1",
        "rootstock_time_to_first_token_seconds_sum 0.2",
        "rootstock_inter_token_seconds_sum 0.02",
        "rootstock_request_seconds_sum 1.0",
        "rootstock_step_seconds_sum 0.01",
        "rootstock_step_tokens_sum 5.0",
        "rootstock_event_loop_lag_seconds_sum 0.3",
        'rootstock_adapter_load_seconds_sum{tier="disk"} 0.4',
    ):
        assert line in text, line


def labels_of(id: AdapterId) -> str:
    return id.removeprefix("sha256:")[:12]


def test_a_blocked_loop_is_noticed() -> None:
    async def scenario() -> list[float]:
        late: list[float] = []
        lag_watch = asyncio.create_task(watch_loop_lag(late.append, period_s=0.001))
        while not late:
            await asyncio.sleep(0)
        time.sleep(0.05)
        seen = len(late)
        while len(late) <= seen:
            await asyncio.sleep(0)
        lag_watch.cancel()
        return late

    assert max(asyncio.run(scenario())) >= 0.045


def test_a_server_takes_work_between_ready_and_drain() -> None:
    life = Lifecycle()
    with pytest.raises(NotReady):
        life.check()
    life.ready()
    life.check()
    life.drain()
    life.ready()
    with pytest.raises(Draining):
        life.check()


def test_a_drain_waits_for_answers() -> None:
    async def scenario() -> None:
        life = Lifecycle()
        assert await life.until_idle(0)
        with life.answering():
            assert not await life.until_idle(0.01)
        assert await life.until_idle(0)

    asyncio.run(scenario())


def test_g73_one_server_a_data_directory(tmp_path: Path) -> None:
    held = DataDir(tmp_path / "d").lock()
    with pytest.raises(DataDirInUse, match="--data-dir"):
        DataDir(tmp_path / "d").lock()
    os.close(held)
    os.close(DataDir(tmp_path / "d").lock())


def test_a_data_directory_of_somebody_else_is_told_with_the_way_to_own_it(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write anywhere
    try:
        with pytest.raises(DataDirUnusable, match=r"may not write to .*theirs.*`chown -R \d+:\d+ DIR`.*--data-dir"):
            DataDir(theirs).lock()
    finally:
        os.seteuid(user)


def test_left_over_uploads_are_cleared(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    data.clear_uploads()
    data.uploads.mkdir()
    (data.uploads / "x.part").touch()
    data.clear_uploads()
    assert not list(data.uploads.iterdir())
