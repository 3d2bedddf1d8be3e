"""A server over the fake engine that logs as `rootstock serve` does, and a few requests to it; then it ends.

Run as `python -m tests.support.logged FORMAT FOLDER`: everything that was logged is on standard error.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from engine.sequence import Request
from server import logs
from tests.support.engine import FakeStream, FakeWorker
from tests.support.http import serve
from tests.support.reply_checks import check_after
from tests.support.server_rig import BASE, form, make_rig

KEY = "sk-4f9a1c_c4n4ryKEYc4n4ryKEYc4n4ryKEY"
PROMPT = "zebra] 'quagga\" okapi"
CANARIES = ("c4n4ry", "zebra", "quagga", "okapi")


@dataclass
class Talkative(FakeWorker):
    """An engine with bugs: on a request for more than 50 tokens it raises all that it knows about it."""

    prompts: tuple[str, ...] = (PROMPT,)

    async def submit(self, request: Request) -> FakeStream:
        if request.params.max_tokens > 50:
            raise RuntimeError(f"cannot serve {dict(prompt=PROMPT, headers=f'Bearer {KEY}')} as {request}")
        return await super().submit(request)


def main(format: str, folder: Path) -> None:
    logs.set_up("debug", format)
    rig = make_rig(folder, Talkative(fail_after=20))
    completion = {"model": BASE, "prompt": PROMPT, "max_tokens": 8, "stop": [PROMPT]}
    chat = {"model": BASE, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}
    statuses = []
    with serve(rig.app) as live, live.client(authorization=f"Bearer {KEY}") as client:
        for body in (completion, completion | {"stream": True}, completion | {"max_tokens": 30, "stream": True}):
            statuses.append(client.post("/v1/completions", json=body).status_code)
        for change in ({}, {"max_tokens": 100}, {"prompt": PROMPT}, {"model": PROMPT}, {"temperature": PROMPT}):
            statuses.append(client.post("/v1/chat/completions", json=chat | change).status_code)
        statuses.append(client.get(f"/v1/models/{KEY}", params={"key": KEY, "prompt": PROMPT}).status_code)
        statuses.append(client.post("/v1/adapters", data={"name": "logged"}, files=form()).status_code)
        statuses.append(client.post("/v1/adapters", data={"name": PROMPT, KEY: KEY}, files=form()).status_code)
        check_after(client, rig)
    rig.registry.close()
    print(statuses)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
