"""A stand-in for vLLM, a program of its own: `stand_in_model.py NAME PORT`.

`broken…` ends while it starts, `mute…` never answers. Any other answers with its model and the body that it was sent.
A body with `wait` is answered once the file that it names is there; `<file>.asked` says that it has come. One with
`stream` is answered in pieces, each once that folder has a file with its number.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def run_stand_in(name: str, port: int) -> None:
    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(b"{}")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if wait := body.get("wait"):
                Path(f"{wait}.asked").touch()
                until_exists(Path(wait))
            if folder := body.get("stream"):
                self._stream(Path(folder))
            else:
                self._send(json.dumps({"model": name, "path": self.path, "body": body}).encode())

        def _send(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, folder: Path) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for number in range(3):
                until_exists(folder / str(number))
                self.wfile.write(b"10\r\ndata: piece %d   \r\n" % number)
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *words: Any) -> None: ...

    if name.startswith("broken"):
        print("Traceback of the stand-in\nthe weights do not fit", flush=True)
        sys.exit(3)
    while name.startswith("mute"):
        time.sleep(1)
    ThreadingHTTPServer(("127.0.0.1", port), Answer).serve_forever()


def until_exists(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


if __name__ == "__main__":
    run_stand_in(sys.argv[1], int(sys.argv[2]))
