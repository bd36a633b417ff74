"""scripts/download_pictures.py against a server of this machine, of whose pictures many are gone."""

import io
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from configs import cli
from data.annotations.web_pairs import read_downloaded
from data.errors import BadInput
from scripts import download_pictures
from tests.kill_points import run_killed


def picture(form):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, form)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/moved.jpg":
            self.send_response(302)
            self.send_header("Location", "/images/photo_unavailable.png")
            return self.end_headers()
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words):
        pass


@pytest.fixture
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.files = {
        "/a.jpg": picture("JPEG"), "/b": picture("PNG"), "/page.jpg": b"<html>gone</html>", "/half.jpg": picture("JPEG")[:300],
        "/images/photo_unavailable.png": picture("PNG"),
    }  # fmt: skip
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(*words):
    download_pictures.main(cli.parse(download_pictures.Options, [str(word) for word in words], ("list",)))


def lines(path):
    return dict(line.split("\t") for line in Path(path).read_text().splitlines())


def test_what_came_and_what_is_gone(site, tmp_path, capsys):
    names = ["a.jpg", "page.jpg", "gone.jpg", "b", "a.jpg", "half.jpg", "moved.jpg"]
    addresses = [f"{site.url}/{name}" for name in names] + ["http://127.0.0.1:9/dead.jpg"]
    table = tmp_path / "Train_GCC-training.tsv"
    table.write_text("".join(f"a caption {n}\t{address}\n" for n, address in enumerate(addresses)))
    fetch(table, "--out", tmp_path / "out", "--workers", 2)
    assert "7 addresses: 2 pictures came, 5 did not" in capsys.readouterr().out
    report = {"addresses": 7, "came": 2, "gone": 5, "before": 0}
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    came = {f"{site.url}/a.jpg": "000000/000000000.jpg", f"{site.url}/b": "000000/000000003.png"}  # numbers of distinct addresses
    assert lines(tmp_path / "out/files.tsv") == came == read_downloaded(tmp_path / "out/files.tsv")
    for address, file in came.items():
        assert (tmp_path / "out" / file).read_bytes() == site.files[address.removeprefix(site.url)]
    gone = lines(tmp_path / "out/gone.tsv")
    assert set(gone) == set(addresses) - set(came)
    assert gone[f"{site.url}/moved.jpg"] == "the photograph is not available any more" and "refused" in gone[addresses[-1]]
    assert gone[f"{site.url}/gone.jpg"] == "Not Found" and "no picture" in gone[f"{site.url}/page.jpg"]

    site.asked.clear()
    for torn in (f"{site.url}/to", f"{site.url}/gone.jpg\t000", "http://x/ä"):
        with open(tmp_path / "out/files.tsv", "ab") as file:
            file.write(torn.encode()[:-1])  # a run that was killed while it wrote
        fetch(table, "--out", tmp_path / "out")
        assert lines(tmp_path / "out/files.tsv") == came
    assert site.asked == [] and "7 were done before" in capsys.readouterr().out
    site.files["/gone.jpg"] = picture("JPEG")
    fetch(table, "--out", tmp_path / "out", "--again")
    assert lines(tmp_path / "out/files.tsv") == came | {f"{site.url}/gone.jpg": "000000/000000002.jpg"}
    assert len(lines(tmp_path / "out/gone.tsv")) == 4 and "/a.jpg" not in site.asked


def test_killed_before_any_change_of_a_file_it_goes_on(site, tmp_path):
    table, out = tmp_path / "list.tsv", tmp_path / "out"
    table.write_text("".join(f"a caption\t{site.url}/{name}\n" for name in ("a.jpg", "b", "gone.jpg")))

    def main():
        fetch(table, "--out", out, "--workers", 1)

    def content():
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "report.json"}

    run_killed(main, out, None)  # in a child, whose end lets go of the folder
    whole, number = content(), 0
    shutil.rmtree(out)
    while run_killed(main, out, number):
        run_killed(main, out, None)
        assert content() == whole, f"killed before change {number}"
        shutil.rmtree(out)
        number += 1
    assert number > 8


def test_a_pipe_on_this_machine_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "list.tsv").write_text(f"a caption\tfile://{tmp_path}/pipe\n")
    fetch(tmp_path / "list.tsv", "--out", tmp_path / "out")
    assert lines(tmp_path / "out/gone.tsv") == {f"file://{tmp_path}/pipe": "it begins with neither http:// nor https://"}


def test_sbus_list(site, tmp_path, capsys):
    urls = [f"{site.url}/a.jpg", f"{site.url}/gone.jpg"]
    (tmp_path / "sbu.json").write_text(json.dumps({"image_urls": urls, "captions": ["one", "two"]}))
    fetch(tmp_path / "sbu.json", "--out", tmp_path / "out")
    assert lines(tmp_path / "out/files.tsv") == {urls[0]: "000000/000000000.jpg"}


def test_lists_without_addresses(tmp_path):
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(BadInput, match=r"empty.tsv: no address of a picture in it"):
        fetch(tmp_path / "empty.tsv", "--out", tmp_path / "out")
    with pytest.raises(BadInput, match="workers 0 must be at least 1"):
        fetch(tmp_path / "empty.tsv", "--out", tmp_path / "out", "--workers", 0)
