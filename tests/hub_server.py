"""A server that speaks the Hugging Face hub's API for what is asked of it here: a repository's revision, its files, a file; and to make
a repository and to commit files to it. The client is the real `huggingface_hub`."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants

from data.downloads import hub as names


@dataclass
class Repository:
    """Revision (branch, tag) → commit, and commit → name of a file → its bytes."""

    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes], revision: str = "main") -> str:
        number = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[number] = files
        self.revisions[revision] = number
        return number

    def add_folder(self, folder: Path, revision: str = "main") -> str:
        files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}
        return self.commit(files, revision)

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        number = self.revisions.get(revision, revision)
        return (number, self.commits[number]) if number in self.commits else None


@dataclass
class Hub:
    """What the server holds, and what it was asked.

    Attributes:
        models, datasets: name → repository
        uploaded: digest of a large file → its bytes
        asked: method and path of each request
        tokens: what the requests were signed with
        refuses: to be written to
    """

    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""
    refuses: bool = False


def etag_of(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words) -> None:
        pass

    def answer(self, status: int, content=b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/json"} | {n.replace("_", "-"): v for n, v in headers.items()}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def note(self) -> list[str]:
        path = urlsplit(self.path).path
        self.hub.asked.append((self.command, unquote(path)))
        self.hub.tokens.add(self.headers.get("Authorization"))
        return [unquote(part) for part in path.strip("/").split("/")]

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def found(self, repositories: dict[str, Repository], name: str, revision: str):
        """The repository's revision; None, and an answer that says why."""
        repo = repositories.get(name)
        if repo is None or repo.private:
            self.answer(401, {"error": "Invalid username or password."}, X_Error_Code="RepoNotFound")
        elif repo.gated:
            self.answer(403, {"error": "Access to it is restricted"}, X_Error_Code="GatedRepo")
        elif (files := repo.files(revision)) is None:
            self.answer(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        else:
            return files
        return None

    def do_GET(self) -> None:
        parts = self.note()
        if parts[0] == "api" and parts[1] in ("models", "datasets"):
            repositories, rest = getattr(self.hub, parts[1]), parts[2:]
            of_api = next((n for n, part in enumerate(rest) if part in ("revision", "tree")), len(rest))
            name, revision = "/".join(rest[:of_api]), "/".join(rest[of_api + 1 :]) or "main"
            found = self.found(repositories, name, revision)
            if found is None:
                return
            commit, files = found
            if rest[of_api : of_api + 1] == ["tree"]:
                entries = [{"type": "file", "path": path, "size": len(c), "oid": etag_of(c)} for path, c in files.items()]
                return self.answer(200, entries)
            siblings = [{"rfilename": path} for path in files]
            return self.answer(200, {"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0, "likes": 0})
        repositories = self.hub.datasets if parts[0] == "datasets" else self.hub.models
        parts = parts[parts[0] == "datasets" :]
        if "resolve" not in parts:
            return self.answer(404, {"error": "not spoken here"})
        at = parts.index("resolve")
        found = self.found(repositories, "/".join(parts[:at]), parts[at + 1])
        if found is None:
            return
        commit, files = found
        content = files.get("/".join(parts[at + 2 :]))
        if content is None:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        self.answer(200, content, ETag=f'"{etag_of(content)}"', X_Repo_Commit=commit, Content_Type="application/octet-stream")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        parts, body = self.note(), self.body()
        if self.hub.refuses:
            return self.answer(401, {"error": "Invalid username or password."})
        if parts == ["api", "repos", "create"]:
            wanted = json.loads(body)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            known = name in self.hub.models
            self.hub.models.setdefault(name, Repository()).commit({}) if not known else None
            self.answer(409 if known else 200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})
        elif parts == ["api", "validate-yaml"]:  # of a card
            self.answer(200, {"errors": [], "warnings": []})
        elif parts[:2] == ["api", "models"] and "preupload" in parts:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular", "shouldIgnore": False} for f in files]
            self.answer(200, {"files": modes})
        elif parts[-3:] == ["lfs", "objects", "batch"]:
            objects = json.loads(body)["objects"]
            links = [{**each, "actions": {"upload": {"href": f"{self.hub.url}/upload/{each['oid']}", "header": {}}}} for each in objects]
            self.answer(200, {"transfer": "basic", "objects": links}, Content_Type="application/vnd.git-lfs+json")
        elif parts[:2] == ["api", "models"] and "commit" in parts:
            name = "/".join(parts[2 : parts.index("commit")])
            files = dict(self.hub.models[name].files("main")[1])
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.uploaded[value["oid"]]
            commit = self.hub.models[name].commit(files, parts[parts.index("commit") + 1])
            self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True, "hookOutput": ""})
        else:
            self.answer(404, {"error": f"not spoken here: {self.path} {parse_qs(urlsplit(self.path).query)}"})

    def do_PUT(self) -> None:
        content = self.body()
        self.note()
        self.hub.uploaded[hashlib.sha256(content).hexdigest()] = content
        self.answer(200)


@contextmanager
def running_hub():
    """A hub on a free port of this machine, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def asked_hub(tmp_path: Path, monkeypatch):
    """A hub that this process asks, with an empty cache, from an empty folder."""
    with running_hub() as hub:
        for name, value in {
            "ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
        }.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        forget()
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        yield hub
        forget()


def forget() -> None:
    """What this process knows of the hub, as a new one does."""
    names._downloaded.cache_clear()
    names._unreachable.clear()
