"""`python -m tests.fuzz.run TARGET --seconds N`: one target under atheris (libFuzzer), for as long as wanted.

With `--corpus DIR`, what was found interesting is kept there for the next run. A crash leaves its input there too,
or in the working directory, and exits with another code than 0. Needs the extra `fuzz`.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["adapters"]):
    from tests.fuzz.targets import TARGETS


@contextlib.contextmanager
def _corpus(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def main() -> None:
    options = argparse.ArgumentParser(description="Fuzz one parser.")
    options.add_argument("target", choices=sorted(TARGETS))
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--corpus", type=Path, help="a directory to begin from and to add to")
    chosen = options.parse_args()
    target = TARGETS[chosen.target]
    with _corpus(chosen.corpus) as corpus:
        for number, seed in enumerate(target.seeds):
            (corpus / f"seed-{number}").write_bytes(seed)
        flags = [f"-max_total_time={chosen.seconds}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=2048"]
        if chosen.corpus is not None:
            flags.append(f"-artifact_prefix={corpus}/")
        atheris.Setup([sys.argv[0], *flags, str(corpus)], target.parse)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
