"""A library that answers at once, behind the pipe: run as a module, with the directories of base and adapters."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.peers.loops.protocol import Answer, Request, claim_output, serve


class Instant:
    """One token each microsecond, the length of the model's name; fails for the model `bad`, and has one token too few
    for `short`."""

    mixes = False

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        if requests[0].model == "bad":
            raise MemoryError("no room")
        now = time.perf_counter()
        tokens = [request.output_tokens - (request.model == "short") for request in requests]
        return [
            Answer([now + 1e-6 * token for token in range(count)], [len(request.model)] * count)
            for request, count in zip(requests, tokens, strict=True)
        ]


if __name__ == "__main__":
    out = claim_output()
    print("noise on standard output")
    if not Path(sys.argv[1]).is_dir():
        sys.exit(f"{sys.argv[1]} is no base")
    serve(Instant(), out)
