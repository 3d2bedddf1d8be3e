"""The server over fakes as a process of its own, which can be killed.

Run as `python -m tests.support.server_rig_process PORT FOLDER`.
"""

import sys
from pathlib import Path

import uvicorn

from tests.support.server_rig import make_rig


def main(port: int, folder: Path) -> None:
    uvicorn.run(make_rig(folder).app, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
