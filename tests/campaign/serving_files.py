"""A server of some files on this machine, slow enough to be interrupted."""

from __future__ import annotations

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import yaml

from tests.campaign.damage import is_readable


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.server.folder / self.path.lstrip("/")
        if not is_readable(path):
            return self.send_error(404)
        content = path.read_bytes()
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        for at in range(start, len(content), 1 << 14):
            self.wfile.write(content[at : min(at + (1 << 14), len(content))])
            time.sleep(0.003)

    def log_message(self, *words):
        pass


class FileServer:
    """Serves archives and photographs of a folder; ``served.yaml`` and ``served.tsv`` there say where."""

    current: ClassVar[FileServer]

    def __init__(self, folder: Path):
        self.folder = folder
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.folder = folder
        FileServer.current = self

    def describe(self, folder: Path) -> None:
        url = f"http://127.0.0.1:{self._server.server_port}"
        archives = [{"url": f"{url}/{name}", "unpack": True} for name in ("captions.zip", "captions.tar", "photos.tar") if (folder / name).exists()]
        source = {"title": "x", "licence": "none", "page": "none", "files": archives}
        (folder / "served.yaml").write_text(yaml.safe_dump({"x": source}))
        rows = [f"a picture {n}\t{url}/photo/{path.name}\n" for n, path in enumerate(sorted(folder.glob("photo/*")))]
        (folder / "served.tsv").write_text("".join(rows))

    def __enter__(self) -> FileServer:
        self.describe(self.folder)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()
