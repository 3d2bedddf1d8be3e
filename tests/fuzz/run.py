"""`python -m tests.fuzz.run TARGET --seconds N`: one target under atheris (libFuzzer), for as long as wanted.

With `--corpus DIR`, what was found interesting is kept there for the next run. A crash leaves its input there too,
or in the working directory, and exits with another code than 0. Needs the extra `fuzz`.
"""

import argparse
import contextlib
import resource
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


def _limit_mb() -> int:
    """2 GiB more than we were born with: libFuzzer goes by the peak that Linux hands on from whoever starts us."""
    return 2048 + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


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
        flags = [f"-max_total_time={chosen.seconds}", "-max_len=4096", "-timeout=10", f"-rss_limit_mb={_limit_mb()}"]
        if chosen.corpus is not None:
            flags.append(f"-artifact_prefix={corpus}/")
        atheris.Setup([sys.argv[0], *flags, str(corpus)], target.parse)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
