"""What a server does without being asked: again and again, whatever fails."""

import asyncio
from pathlib import Path

import pytest

from adapters.upload_files import UploadSpec
from adapters.uploads import UploadLimits
from server.garbage import Garbage
from server.periodic import repeat
from server.serve import periodic_tasks
from server.warm_start import ResidentRecorder
from tests.support.server_rig import make_rig

pytestmark = pytest.mark.anyio


async def test_a_chore_that_fails_is_tried_again_and_keeps_no_other_from_being_done() -> None:
    done: list[str] = []

    async def fail() -> None:
        done.append("failed")
        raise OSError("no disk")

    async def work() -> None:
        done.append("worked")

    doing = asyncio.create_task(repeat({"it_failed": fail, "work_failed": work}, 0.001))
    async with asyncio.timeout(10):
        while len(done) < 6:
            await asyncio.sleep(0.001)
    doing.cancel()
    assert done[:6] == ["failed", "worked"] * 3


async def test_a_server_that_nobody_asks_anything_forgets_expired_uploads(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, uploads=UploadLimits(age_s=0.3))
    services, folder = rig.services, tmp_path / "uploads" / "resumable"
    services.uploads.begin(UploadSpec("", "x", None, b"{}", 5))
    assert list(folder.iterdir())
    todo = periodic_tasks(services, ResidentRecorder(services.worker, services.server_catalog), Garbage(lambda: False))
    doing = asyncio.create_task(repeat(todo, 0.01))
    async with asyncio.timeout(10):
        while list(folder.iterdir()):
            await asyncio.sleep(0.01)
    doing.cancel()
    await asyncio.gather(doing, return_exceptions=True)
    rig.registry.close()
