"""The face over fakes as a process of its own, which can be killed: `python -m tests.support.facing PORT FOLDER`."""

import sys
from pathlib import Path

import uvicorn

from tests.support.face import make_face


def main(port: int, folder: Path) -> None:
    uvicorn.run(make_face(folder).app, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
