"""The search service under abuse: odd requests one behind the other, broken connections, an index that is damaged and put back."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from tests.campaign import hostile
from tests.campaign.children import Command
from tests.campaign.damage import damage_file, is_readable
from tests.campaign.isolation import become_nobody
from tests.campaign.outcomes import Result
from tests.campaign.rooms import Clean, Room
from tests.campaign.values import as_json, changed_tree, hostile_json
from tests.campaign.world import SEARCHED

REQUESTS = 60
MORE_MEMORY = 250 << 20  # bytes that a service may grow by meanwhile
ASKED = {"text": "a red circle", "k": 3}
PATHS = ["/", "/api/info", "/api/healthz", "/api/metrics", "/api/openapi.json", "/api/picture", "/api/image/x", "/../../etc/passwd", "/%00", "/%2e%2e/%2e%2e/x", "/" + "a" * 9000, "/api/search", "/api/failures?k=-1", "/api/failures?offset=1e9"]


@dataclass(frozen=True)
class Soak:
    """``scripts/serve.py`` answers a plain query as at first, whatever it was asked meanwhile, and does not grow."""

    name: str = "service: odd requests, damaged index"
    weight: float = 0.3

    @property
    def words(self) -> list[str]:
        return ["scripts/serve.py", *SEARCHED, "--captions", "db/test", "--captions-index", "txt", "--regions", "regions", "--photos", "photos", "--backends", "exact", "hnsw", "--port", "0"]

    def clean(self, room: Room) -> dict:
        self._fill(room)
        command, port = self._start(room)
        found = answer_to(port)
        command.kill()
        command.wait(10)
        return {"outputs": {"hits": json.dumps(found)}}

    def _fill(self, room: Room) -> None:
        room.fill(["fine", "img", "txt", "db/test", "regions", "photos", "eval_b"])

    def _start(self, room: Room) -> tuple[Command, int]:
        for name in ("log", "log.out"):
            (room.folder / name).unlink(missing_ok=True)
        command, out = Command(self.words, room.box, room.log), Path(f"{room.log}.out")
        while not (out.exists() and "http://" in out.read_text()):
            if command.has_ended(0.05):
                raise RuntimeError(f"the service did not start: {command.wait(1).errors[-2000:]}")
        port = int(out.read_text().split("/")[2].split(":")[1])
        request(port, "GET", "/api/healthz")
        return command, port

    def run(self, room: Room, clean: Clean, number: int, chance: random.Random) -> Result:
        become_nobody()
        self._fill(room)
        command, port = self._start(room)
        before, done, outcome, detail = resident(command.pid), [], "identical", ""
        for _ in range(REQUESTS):
            done.append(abuse(port, room, chance))
            if command.has_ended(0):
                break
            if done[-1].endswith((": 500", ": no answer")):
                outcome, detail = "broken", done[-1]
                break
        ended = command.has_ended(0)
        if outcome == "identical" and not ended:
            outcome, detail = self._still_right(port, room, clean, resident(command.pid) - before)
        command.kill(15, group=False)
        end = command.wait(20)
        if ended:
            outcome, detail = "crash", f"it ended with {end.status} after: {done[-1]}\n{end.errors[-1500:]}"
        elif outcome == "identical" and "Traceback" in end.errors:
            outcome, detail = "traceback", end.errors[-1500:]
        elif outcome == "identical" and end.timed_out:
            outcome, detail = "hang", "it does not end when it is asked to"
        return Result(self.name, number, outcome, f"{len(done)} requests, the last: {done[-1]}", detail, self.words, end.seconds)

    def _still_right(self, port: int, room: Room, clean: Clean, grown: int) -> tuple[str, str]:
        publish(room, room.world / "img/data.mdb")
        right, until = json.loads(clean.outputs["hits"]), time.monotonic() + 10
        while (found := answer_to(port)) != right and time.monotonic() < until:
            time.sleep(0.2)  # it looks at its index every second
        if found != right:
            return "silent", f"another answer than at first: {str(found)[:500]}"
        return ("memory", f"{grown >> 20} MB more") if grown > MORE_MEMORY else ("identical", "")


def request(port: int, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def search(port: int, body: bytes) -> tuple[int, bytes]:
    return request(port, "POST", "/api/search", body, {"Content-Type": "application/json"})


def answer_to(port: int) -> list:
    """Names and scores that a plain query finds."""
    status, body = search(port, as_json(ASKED))
    if status != 200:
        return [status, body.decode(errors="replace")]
    return sorted([key, json.dumps(value)] for key, value in json.loads(body).items() if "hit" in key or "result" in key)


def abuse(port: int, room: Room, chance: random.Random) -> str:
    """One odd thing → what, and the status that came back."""
    how = chance.randrange(9)
    try:
        if how <= 2:
            tree, said = changed_tree(ASKED | chance.choice([{}, {"backend": "hnsw"}, {"image": "scene_000020.npz"}]), chance)
            return f"search, {said}: {search(port, as_json(tree))[0]}"
        if how == 3:
            body, said = hostile_json(chance)
            return f"search, {said}: {search(port, body)[0]}"
        if how == 4:
            path = chance.choice(PATHS)
            return f"{path[:50]}: {request(port, chance.choice(['GET', 'POST', 'HEAD', 'DELETE']), path)[0]}"
        if how == 5:
            return raw_bytes(port, chance)
        if how == 6:
            return f"a picture: {picture(port, room, chance)}"
        target = room.box / "img/data.mdb"
        if how == 7:
            copy = room.box / "copy.mdb"
            if os.path.lexists(copy):
                hostile.remove(copy)  # a link that the last damage left, which would be written through
            shutil.copyfile(room.world / "img/data.mdb", copy)
            said = damage_file(copy, chance)
            if copy.is_file() and not copy.is_symlink():
                copy.replace(target)
            return f"index with {said}: {search(port, as_json(ASKED))[0]}"
        publish(room, room.world / chance.choice(["img", "eval_b/img"]) / "data.mdb")
        return f"another index: {search(port, as_json(ASKED))[0]}"
    except http.client.HTTPException as error:
        return f"{how}: {type(error).__name__}"
    except TimeoutError:
        return f"{how}: no answer"
    except OSError as error:
        return f"{how}: {type(error).__name__}"
    except UnicodeError:
        return f"{how}: not sent"


def publish(room: Room, index: Path) -> None:
    copy = room.box / "published.mdb"
    shutil.copyfile(index, copy)
    copy.replace(room.box / "img/data.mdb")


def raw_bytes(port: int, chance: random.Random) -> str:
    """Bytes that are no request, or half of one; the connection is closed without waiting."""
    data = chance.choice([
        chance.randbytes(200), b"GET / HTTP/1.1\r\n", b"POST /api/search HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n{",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", b"POST /api/search HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\n",
    ])  # fmt: skip
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
    return f"{data[:20]!r}, then nothing"


def picture(port: int, room: Room, chance: random.Random) -> int:
    """A picture of one's own as the query, damaged."""
    path = room.box / "asked.jpg"
    hostile.remove(path)
    shutil.copyfile(chance.choice(sorted((room.world / "photos").iterdir())), path)
    if chance.random() < 0.7:
        damage_file(path, chance)
    if chance.random() < 0.2:
        hostile.remove(path)
        chance.choice([hostile.picture_bomb, hostile.picture_text_bomb])(path)
    data = first_bytes(path, 8 << 20) if is_readable(path) else b""
    hostile.remove(path)
    body = b'--edge\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + data + b"\r\n--edge--\r\n"
    return request(port, "POST", "/api/search", body, {"Content-Type": "multipart/form-data; boundary=edge"})[0]


def first_bytes(path: Path, most: int) -> bytes:
    """Of a file that may have a hole of any size."""
    with open(path, "rb") as file:
        return file.read(most)


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0
