"""A whole server as the command assembles it, on a tiny base: what the settings say is what its engine does."""

import asyncio
from pathlib import Path

import pytest
from pydantic import ByteSize
from rich.console import Console

from engine.sequence import Request, SamplingParams
from loader.progress import ignore
from server.assembly import assemble
from server.datadir import DataDir
from server.host_check import HostCheck
from server.keys.ring import NoKeys
from server.meter import Meter
from server.settings import Settings
from tests.support.models import tiny_model_dir
from tests.support.recorder import Again

ASK = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
SMALL = ByteSize(1 << 22)


async def replays(settings: Settings, recorder: Again) -> int:
    """How many steps of one answer are replayed."""
    data = DataDir(settings.data_dir)
    quiet = Console(quiet=True)
    runtime = assemble(settings, data, NoKeys(), HostCheck(), Meter(), ignore, quiet, lambda base: recorder)
    try:
        runtime.worker.start()
        stream = await runtime.worker.submit(Request("one", (1, 2, 3), ASK))
        assert [token async for output in stream for token in output.token_ids]
        await runtime.worker.stop(5)
    finally:
        runtime.registry.close()
    return recorder.replayed


@pytest.mark.parametrize("graphs", [True, False])
def test_decode_steps_are_recorded_unless_the_settings_say_otherwise(graphs: bool, tmp_path: Path) -> None:
    settings = Settings(
        base=str(tiny_model_dir("llama", tmp_path)),
        data_dir=tmp_path / "data",
        device="cpu",
        kernels="off",
        cuda_graphs=graphs,
        kv_cache_memory=SMALL,
        adapter_device_memory=SMALL,
        adapter_host_memory=SMALL,
    )
    assert asyncio.run(replays(settings, Again())) == (3 if graphs else 0)
