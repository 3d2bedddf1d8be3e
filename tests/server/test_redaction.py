"""Logs: keys and prompts never stand in them, at any level, in any format, whoever writes the line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.redaction import HIDDEN, redact, redact_text
from tests.support.logged import CANARIES, KEY

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("format", ["json", "console"])
def test_h81_logs_hold_no_key_and_no_prompt(format: str, tmp_path: Path) -> None:
    """Success, 4xx, 5xx, streams and their failures, and uploads, all at debug level."""
    command = [sys.executable, "-m", "tests.support.logged", format, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    statuses = json.loads(ended.stdout)
    assert {200, 201, 400, 404, 500} <= set(statuses)
    written = ended.stderr
    assert written.count("request_id") >= len(statuses), "the requests were logged"
    assert "RuntimeError" in written and HIDDEN in written, "and so was the bug, without what it knew"
    assert "stream_failed" in written
    assert [canary for canary in CANARIES if canary in written] == []


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {KEY}",
        f"the key {KEY} was refused",
        "authorization: basic c4n4ryc4n4ry",
        "api_key='c4n4ry'",
        "Request(id='1', prompt=(1, 2), stop=('zebra',))",
        '{"messages": [{"role": "user", "content": "a] zebra"}]}',
        r"""{'prompt': 'it\'s a zebra'}""",
        "Input should be a number [type=float, input_value='zebra', input_type=str]",
        "body=b'zebra'",
    ],
)
def test_text_is_redacted(text: str) -> None:
    hidden = redact_text(text)
    assert HIDDEN in hidden and not [canary for canary in CANARIES if canary in hidden]


@pytest.mark.parametrize(
    "text",
    ["request", "route=/v1/completions status=200", "content-type: application/json", "tokens=5", "a risk-free step"],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert redact_text(text) == text


def test_fields_are_redacted_by_name_at_any_depth() -> None:
    event = redact(
        None,
        "info",
        {
            "event": "odd",
            "seconds": 0.5,
            "tokens": 7,
            "prompt": "zebra",
            "Authorization": KEY,
            "error": ValueError(f"prompt='zebra' {KEY}"),
            "request": {"messages": ["zebra"], "n": 2, "headers": [["authorization", f"Bearer {KEY}"]]},
        },
    )
    assert not [canary for canary in CANARIES if canary in str(event)]
    assert (event["event"], event["seconds"], event["tokens"], event["request"]["n"]) == ("odd", 0.5, 7, 2)
