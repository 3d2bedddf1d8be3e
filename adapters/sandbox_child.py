"""The process that reads one upload and ends: `python -m adapters.sandbox_child MEMORY SECONDS`, from stdin to stdout.

Owns its own limits, which it sets before it sees a byte of the upload: address space, processor time, and no file
written. Imports nothing but this package and the standard library: what is installed beside it is not even on its path.
"""

import resource
import sys

OUT_OF_MEMORY = 3
"""The exit code that says so."""


def main(memory: int, seconds: int) -> None:
    """Limits are raised by nobody afterwards: the hard ones are set too."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        result = _read(sys.stdin.buffer.read())
    except (MemoryError, ImportError):  # an extension module that cannot be mapped is an ImportError
        sys.exit(OUT_OF_MEMORY)
    sys.stdout.buffer.write(result)


def _read(request: bytes) -> bytes:
    """Imported here, under the limits."""
    from adapters.checkpoint import read
    from adapters.errors import InvalidAdapter
    from adapters.sandbox_json import checkpoint_to_json, faults_to_json, request_from_json

    try:
        return checkpoint_to_json(read(*request_from_json(request)))
    except InvalidAdapter as error:
        return faults_to_json(error)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
