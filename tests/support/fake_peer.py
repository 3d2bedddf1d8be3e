"""A server such as a peer's, run as a module with a port: lists two adapters at full scale, and has a child process.

Owns the smallest part of llama.cpp's API that is asked when it starts. With a second argument it ends with that text.
"""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

SCALES = {0: 1.0, 1: 1.0}


class Handler(BaseHTTPRequestHandler):
    """`child` and `told` stand in the answer to /health: its child's process, and a setting that it was given."""

    child: int
    told = os.environ.get("PEER_SETTING", "")

    def do_GET(self) -> None:
        adapters = [{"id": id, "path": f"/somewhere/a{id}.gguf", "scale": scale} for id, scale in SCALES.items()]
        self._reply({"child": self.child, "told": self.told} if self.path == "/health" else adapters)

    def do_POST(self) -> None:
        for one in json.loads(self.rfile.read(int(self.headers["content-length"]))):
            SCALES[one["id"]] = one["scale"]
        self._reply({})

    def _reply(self, document: object) -> None:
        payload = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    if fault := sys.argv[2:]:
        sys.exit(fault[0])
    Handler.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
