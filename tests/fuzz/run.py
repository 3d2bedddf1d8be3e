"""`python -m tests.fuzz.run TARGET --seconds N`: one target under atheris (libFuzzer), for as long as wanted.

A crash leaves its input in the working directory, and exits with another code than 0. Needs the extra `fuzz`.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["adapters"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    options = argparse.ArgumentParser(description="Fuzz one parser.")
    options.add_argument("target", choices=sorted(TARGETS))
    options.add_argument("--seconds", type=int, default=60)
    chosen = options.parse_args()
    target = TARGETS[chosen.target]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        flags = [f"-max_total_time={chosen.seconds}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=2048"]
        atheris.Setup([sys.argv[0], *flags, corpus], target.parse)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
