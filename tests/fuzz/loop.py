"""`python -m tests.fuzz.loop`: how long the event loop stands still for the heaviest bodies that the counts let pass.

Owns those bodies, the ticks, and the verdict. A server on a socket around a fake engine, with the real reading,
checking, laying out and tokenizing; each body comes from a process of its own. Fails when the loop once stood still for
100 ms. The test counts what the loop's thread computed at a time instead, since what else runs on the machine would
decide how long that took.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from server.body import MAX_BRACKETS, MAX_FIELDS, MAX_KEYS, MAX_VALUES
from server.chat_messages import MAX_PARTS
from server.completion_body import MAX_PROMPTS
from server.garbage import Garbage
from server.ports import Limits
from tests.server.test_tokens import tokenizer
from tests.support.engine import FakeWorker
from tests.support.http import LiveServer, serve
from tests.support.server_rig import BASE, make_rig

LIMIT_MS = 100.0
CONTEXT = 131_072
TURNS = 2048
SIZE = (4 << 20) - 1024
_TICK_S = 0.002
_SEND = """
import http.client, sys
host, port, path = sys.argv[1:]
connection = http.client.HTTPConnection(host, int(port), timeout=120)
connection.request("POST", path, sys.stdin.buffer.read(), {"content-type": "application/json"})
print(connection.getresponse().status)
"""


@dataclass(frozen=True, slots=True)
class Body:
    """`fields` beside the model's name, as JSON without its outer braces."""

    path: str
    fields: str

    @property
    def content(self) -> bytes:
        return f'{{"model": "{BASE}", "max_tokens": 1, {self.fields}}}'.encode()


@dataclass(frozen=True, slots=True)
class Heard:
    """What a body was answered, and the longest that the loop stood still meanwhile."""

    name: str
    status: int
    pause_ms: float


def verdict(heard: Sequence[Heard]) -> list[str]:
    """What is wrong: one line for each body that held the loop up, or that was not taken as far as the parser."""
    slow = [f"{each.name}: {each.pause_ms:.0f} ms" for each in heard if each.pause_ms >= LIMIT_MS]
    return slow + [f"{each.name}: status {each.status}" for each in heard if each.status not in (200, 400)]


def bodies() -> Mapping[str, Body]:
    """Each as large as one of the bounds lets it be. Some are answered, some are refused by what comes behind."""
    return {
        "token ids that fit": _prompts(["299"] * (CONTEXT - 8)),
        "token ids": _prompts(["299"] * (MAX_VALUES - 8)),
        "prompts that fit": _prompts([_text(400)] * MAX_PROMPTS),
        "prompts": _prompts([_text(SIZE // MAX_PROMPTS - 8)] * MAX_PROMPTS),
        "one prompt": _prompts([_text(SIZE - 8)]),
        "short strings": _prompts(['"\\u6f22\\u5b57"'] * (MAX_VALUES - 8)),
        "floats": _prompts(["1.5e10"] * (MAX_VALUES - 8)),
        "long numbers": _prompts(["9" * 4000] * (SIZE // 4002)),
        "lists": _prompts(["[299]"] * (MAX_BRACKETS - 8)),
        "fields": Body("/v1/completions", ",".join(f'"u{number}": 1' for number in range(MAX_FIELDS - 8))),
        "turns that fit": _turns([_text(32)] * TURNS),
        "turns": _turns([_text(SIZE // TURNS - 48)] * TURNS),
        "too many turns": _turns(['"x"'] * (MAX_KEYS // 2 - 8)),
        "a schema": _structured(f'"guided_json": {{"enum": [{",".join(["299"] * (MAX_VALUES - 8))}]}}'),
        "a schema that fits": _structured(f'"guided_json": {{"enum": [{",".join(["299"] * 16_000)}]}}'),
        "a schema's lists": _structured(f'"guided_json": {{"enum": [{",".join(["[299]"] * (MAX_BRACKETS - 8))}]}}'),
        "a schema's text": _structured(f'"structured_outputs": {{"json": {{"const": {_text(SIZE - 64)}}}}}'),
        "choices": _structured(f'"guided_choice": [{",".join([_text(SIZE // 1024 - 8)] * 1024)}]'),
        "too many choices": _structured(f'"guided_choice": [{",".join([_text(8)] * (MAX_VALUES - 8))}]'),
        "a regular expression": _structured(f'"guided_regex": "{"[a-z]b" * 10_900}"'),
        "a grammar": _structured(f'"guided_grammar": "start: {"x y " * 16_000}"'),
        "calls": _calls('"{}"', 60, 128),
        "arguments": _calls(json.dumps(json.dumps({"a": [1] * 1_000_000})), 1, 1),
        "arguments that fit": _calls(json.dumps(json.dumps({"a": "word " * 400})), 50, 32),
        "many arguments that fit": _calls(json.dumps(json.dumps({"a": [1] * 16_000})), 40, 1),
        "functions": _tools([["299"] * (MAX_VALUES // 128 - 16)] * 128),
        "functions that fit": _tools([[_text(700)]] * 128),
        "functions with many values": _tools([["299"] * 300] * 128),
        "a function": _tools([["299"] * (MAX_VALUES - 16)]),
        "functions' properties": _properties(128, 60),
        "parts": _turns([f"[{','.join([_part(SIZE // MAX_PARTS)] * MAX_PARTS)}]"]),
    }


def measure(live: LiveServer, name: str, body: Body, clock: Callable[[], float] = time.process_time) -> Heard:
    """`clock` says how much was computed: by the process, whose other threads may keep the loop waiting too, or, with
    `time.thread_time`, by the loop's thread alone."""
    where = urlsplit(live.url)
    command = [sys.executable, "-c", _SEND, str(where.hostname), str(where.port), body.path]
    with _ticking(live, clock) as pauses_ms:
        sent = subprocess.run(command, input=body.content, stdout=subprocess.PIPE, check=True, timeout=120)
    return Heard(name, int(sent.stdout), max(pauses_ms))


@contextlib.contextmanager
def _ticking(live: LiveServer, clock: Callable[[], float]) -> Iterator[list[float]]:
    """How late each tick of the loop was, as far as `clock` went on meanwhile: other processes are no fault."""
    pauses_ms: list[float] = []

    async def tick() -> None:
        while True:
            wall, computed = time.monotonic(), clock()
            await asyncio.sleep(_TICK_S)
            late = time.monotonic() - wall - _TICK_S
            pauses_ms.append(1e3 * min(late, clock() - computed))

    ticking = asyncio.run_coroutine_threadsafe(tick(), live.loop)
    try:
        yield pauses_ms
    finally:
        ticking.cancel()


def _prompts(items: Sequence[str]) -> Body:
    return Body("/v1/completions", f'"prompt": [{",".join(items)}]')


def _turns(contents: Sequence[str], calls: str = "") -> Body:
    """The user's, and behind them one of the assistant's for each list of calls."""
    turns = ",".join(f'{{"role":"user","content":{content}}}' for content in contents) + calls
    return Body("/v1/chat/completions", f'"messages": [{turns}]')


def _calls(arguments: str, turns: int, each: int) -> Body:
    """Turns of as many calls."""
    calls = ",".join(f'{{"id":"{n}","function":{{"name":"f","arguments":{arguments}}}}}' for n in range(each))
    return _turns(['"x"'], f',{{"role":"assistant","tool_calls":[{calls}]}}' * turns)


def _tools(enums: Sequence[Sequence[str]]) -> Body:
    return _functions([f'"properties":{{"p":{{"enum":[{",".join(values)}]}}}}' for values in enums])


def _properties(functions: int, each: int) -> Body:
    named = ",".join(f'"p{n}":{{"type":"null"}}' for n in range(each))
    return _functions([f'"properties":{{{named}}}'] * functions)


def _functions(schemas: Sequence[str]) -> Body:
    described = [f'{{"name":"f{n}","parameters":{{{schema}}}}}' for n, schema in enumerate(schemas)]
    tools = ",".join(f'{{"type":"function","function":{function}}}' for function in described)
    return Body("/v1/chat/completions", f'"messages": [{{"role":"user","content":"x"}}], "tools": [{tools}]')


def _structured(form: str) -> Body:
    return Body("/v1/completions", f'"prompt": "x", {form}')


def _part(size: int) -> str:
    return f'{{"type":"text","text":{_text(size - 32)}}}'


def _text(size: int) -> str:
    return json.dumps(("word " * (size // 5 + 1))[:size])


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[LiveServer, Callable[[], bool]]]:
    """The server that the bodies are for, and whether it is answering."""
    rig = make_rig(folder, FakeWorker(max_model_len=CONTEXT), Limits(CONTEXT), tokenizer=tokenizer())
    with serve(rig.app) as live:
        yield live, lambda: rig.services.lifecycle.in_flight > 0
    rig.registry.close()


def main() -> None:
    options = argparse.ArgumentParser(description="Send the heaviest bodies that are read, and watch the event loop.")
    options.add_argument("--seconds", type=float, default=15, help="no round begins later; there is one at least")
    until = time.monotonic() + options.parse_args().seconds
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    heard: list[Heard] = []
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as (live, busy):
        Garbage(busy).settle()  # as `rootstock serve` does
        while not heard or time.monotonic() < until:
            for name, body in bodies().items():
                heard.append(measure(live, name, body))
                print(f"{name}\t{heard[-1].status}\t{heard[-1].pause_ms:.1f} ms", flush=True)
    sys.exit("\n".join(verdict(heard)) or None)


if __name__ == "__main__":
    main()
