"""As much of W&B's server as uploads of runs ask for: none is to be had here, but W&B's own client can be run against this one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class WandbServer:
    url: str = ""
    taken: set[str] = field(default_factory=set)
    """Ids of the runs that were sent."""
    refused: set[str] = field(default_factory=set)
    """Ids of runs that it does not take."""


@contextmanager
def serving() -> Iterator[WandbServer]:
    found = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.path.startswith("/graphql"):
                self._answer({"exitcode": None, "limits": {}})
                return
            asked = json.loads(sent)
            told = asked.get("variables", {})
            name = told.get("name")
            if asked.get("operationName") == "CreateRunFiles":
                files = [{"name": file, "uploadUrl": f"{found.url}/storage"} for file in told["files"]]
                self._answer({"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}})
            elif asked.get("operationName") != "UpsertBucket":
                self._answer({"data": {}})
            elif name in found.refused:
                self._answer({"errors": [{"message": "permission denied"}]}, 403)
            else:
                found.taken.add(name)
                project = {"id": "p", "name": "priorlab", "entity": {"id": "e", "name": "team"}}
                bucket = {"id": "b", "name": name, "displayName": name, "config": "{}", "summaryMetrics": "{}", "project": project}
                self._answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer({})

        def _answer(self, answer: Any, code: int = 200) -> None:
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
