"""scripts/download.py against a server of this machine that knows ranges, breaks off, and says no."""

import gzip
import hashlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from configs import cli
from data import progress
from data.downloads.archives import unpack_archive
from data.errors import BadInput
from scripts import build_captions, convert_checkpoint, download

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server
        site.asked.append((self.path, self.headers.get("Range")))
        if site.refusals:
            return self.send_error(site.refusals.pop(0))
        content = site.files.get(self.path)
        if content is None:
            return self.send_error(404)
        etag, start = site.version(content), 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and site.ranges and self.headers.get("If-Range") in (None, etag):
            start = int(wanted[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
        self.send_response(206 if start else 200)
        if start and site.range_sent:
            self.send_header("Content-Range", site.range_sent)
            start = int(re.search(r"\d+", site.range_sent)[0])
        if etag:
            self.send_header("ETag" if etag.startswith('"') else "Last-Modified", etag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = min(len(content), start + site.cuts.pop(0)) if site.cuts else len(content)
        for at in range(start, end, 1 << 16):
            self.wfile.write(content[at : min(end, at + (1 << 16))])
            site.after_piece(at)
        self.close_connection = True

    def log_message(self, *words):
        pass


@pytest.fixture
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.refusals, server.cuts = {"/a.bin": CONTENT}, [], [], []
    server.ranges, server.range_sent, server.after_piece = True, "", lambda at: None
    server.version = lambda content: f'"{hashlib.md5(content).hexdigest()}"'
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(site, tmp_path):
    """``get(words..., file fields)`` fetches the source ``it`` of one file."""

    def run(*words, **file):
        sources(tmp_path, site, **file)
        words = ["it", "--sources", tmp_path / "sources.yaml", "--out", tmp_path / "out", *words]
        download.main(cli.parse(download.Options, [str(word) for word in words], ("name",)))

    return run


def sources(tmp_path, site, name="a.bin", **file):
    entry = {"title": "T", "page": "P", "licence": "L", "files": [{"url": f"{site.url}/{name}", **file}]}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"it": entry}))


def test_the_environment_names_another_file_of_sources(site, tmp_path, monkeypatch, capsys):
    sources(tmp_path, site)
    monkeypatch.setenv("LIGHTNINGDOT_DOWNLOADS", str(tmp_path / "sources.yaml"))
    download.main(download.Options("it", out=str(tmp_path / "out")))
    assert (tmp_path / "out/a.bin").read_bytes() == CONTENT
    download.main(download.Options())
    assert capsys.readouterr().out.splitlines()[-1].split() == ["it", "T"]


def sha(content=CONTENT):
    return hashlib.sha256(content).hexdigest()


def test_a_file_with_its_published_checksum(get, site, tmp_path, capsys, monkeypatch):
    for name, none in (("DELAY", 0), ("BETWEEN_LINES", 0), ("BETWEEN_LOOKS", {True: 0, False: 0})):
        monkeypatch.setattr(progress, name, none)
    get(checksum=f"md5:{hashlib.md5(CONTENT).hexdigest()}")
    assert (tmp_path / "out/a.bin").read_bytes() == CONTENT
    shown = capsys.readouterr()
    assert "licence: L" in shown.out and "a.bin: 1,048,576 bytes, md5 as published" in shown.out
    assert "a.bin" in shown.err and "B/s" in shown.err
    get(checksum=f"sha256:{sha()}")
    assert len(site.asked) == 1, "a file that is there is not fetched again"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.bin"]


def test_a_checksum_is_recorded_at_the_first_download(get, site, tmp_path, capsys):
    get()
    assert "no published checksum; sha256" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/checksums.json").read_text()) == {"a.bin": f"sha256:{sha()}"}
    get()
    assert "sha256 as recorded in" in capsys.readouterr().out
    (tmp_path / "out/a.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(BadInput, match=r"a.bin: sha256 is \w+, but \w+ is recorded in .*put aside as .*a.bin.bad"):
        get()
    get()
    assert (tmp_path / "out/a.bin").read_bytes() == CONTENT and (tmp_path / "out/a.bin.bad").stat().st_size == len(
        CONTENT
    ) - 1


def test_a_wrong_checksum_is_one_line(site, tmp_path):
    sources(tmp_path, site, checksum="sha256:" + "0" * 64)
    words = [sys.executable, download.__file__, "it", "--sources", tmp_path / "sources.yaml", "--out", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/out/a.bin: sha256 is {sha()}, but 0000")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.bin.bad"]


def test_a_broken_connection_goes_on_where_it_stopped(get, site, tmp_path):
    site.cuts = [100_000, 200_000]
    get(checksum=f"sha256:{sha()}")
    assert [byte_range for _, byte_range in site.asked] == [None, "bytes=100000-", "bytes=300000-"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.bin"]


def test_a_server_without_ranges_begins_anew(get, site, tmp_path):
    site.cuts, site.ranges = [100_000], False
    get(checksum=f"sha256:{sha()}")
    assert len(site.asked) == 2 and (tmp_path / "out/a.bin").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_fetched_anew(get, site, tmp_path):
    site.cuts = [100_000, 0]
    with pytest.raises(BadInput, match="the same command goes on"):
        get("--retries", 0)
    site.files["/a.bin"] = CONTENT[::-1]
    get(checksum=f"sha256:{sha(CONTENT[::-1])}")


def test_a_server_without_etags(get, site, tmp_path):
    """It goes on by the date of the file; without one, only with what a checksum can find fault with."""
    site.version = lambda content: "Mon, 01 Jan 2024 00:00:00 GMT" if content == CONTENT else "Tue, 02 Jan 2024 00:00:00 GMT"
    site.cuts = [100_000, 0]
    with pytest.raises(BadInput, match="the same command goes on"):
        get("--retries", 0)
    site.files["/a.bin"] = CONTENT[::-1]
    get()
    assert (tmp_path / "out/a.bin").read_bytes() == CONTENT[::-1]
    assert [r for _, r in site.asked] == [None, "bytes=100000-", "bytes=100000-"]


@pytest.mark.parametrize("checksum", [None, f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"])
def test_a_server_that_names_no_version(get, site, tmp_path, checksum):
    site.version, site.cuts = lambda content: None, [100_000]
    get(**({"checksum": checksum} if checksum else {}))
    assert [r for _, r in site.asked] == [None, "bytes=100000-" if checksum else None]
    assert (tmp_path / "out/a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("have, right", [(len(CONTENT), True), (len(CONTENT) + 5, False)])
def test_a_part_as_long_as_the_file_or_longer(get, site, tmp_path, have, right):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.bin.part").write_bytes((CONTENT + b"extra")[:have])
    get(checksum=f"sha256:{sha()}")
    assert len(site.asked) == (1 if right else 2)


def test_a_file_of_another_size_than_its_source_names_is_refused(get, site, tmp_path):
    for size in (len(CONTENT) + 1, len(CONTENT) - 1):
        with pytest.raises(BadInput, match=rf"1,048,576 bytes came, its source names {size:,}"):
            get(bytes=size)
        assert not list((tmp_path / "out").glob("a.bin*"))
    get(bytes=len(CONTENT) + 1, checksum=f"sha256:{sha()}")  # which is surer
    assert (tmp_path / "out/a.bin").read_bytes() == CONTENT


def test_another_range_than_was_asked_for_is_not_put_behind_what_is_there(get, site, tmp_path):
    """A proxy that answers from what it has kept, say."""
    site.cuts, site.range_sent = [300_000], "bytes 299000-1048575/1048576"
    get("--retries", "2")
    assert (tmp_path / "out/a.bin").read_bytes() == CONTENT
    assert [wanted for _, wanted in site.asked] == [None, "bytes=300000-", None]


def test_a_killed_download_goes_on(get, site, tmp_path):
    killed = threading.Event()
    site.after_piece = lambda at: at > 3 << 16 and killed.wait(240)
    sources(tmp_path, site, checksum=f"sha256:{sha()}")
    words = [sys.executable, download.__file__, "it", "--sources", tmp_path / "sources.yaml", "--out", tmp_path / "out"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part, deadline = tmp_path / "out/a.bin.part", time.monotonic() + 120
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size > 100_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = part.stat().st_size
    assert 0 < have < len(CONTENT) and not (tmp_path / "out/a.bin").exists()
    killed.set()
    get(checksum=f"sha256:{sha()}")
    assert site.asked[-1] == ("/a.bin", f"bytes={have}-")


def test_what_the_server_says_no_to(get, site):
    with pytest.raises(BadInput, match=r"/absent: the server says 404 Not Found; its page"):
        get(name="absent")
    assert len(site.asked) == 1, "a 404 is not tried again"
    site.refusals = [503, 429, 408]
    get("--retries", 3, checksum=f"sha256:{sha()}")
    with pytest.raises(BadInput, match=r"http://127.0.0.1:9/x: .*refused"):
        get("--retries", 0, url="http://127.0.0.1:9/x")


@pytest.mark.parametrize("place", ["file://{}", "FTP://127.0.0.1:9/{}", "{}", "data:,x"])
def test_what_is_on_no_web_server_is_not_fetched(get, tmp_path, place):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match=r"not an address that can be fetched \(it begins with neither http:// nor https://\)"):
        get(url=place.format(tmp_path / "pipe"))


@pytest.mark.parametrize("file", [{"name": "../a.bin"}, {"name": "/tmp/a.bin"}, {"name": "checksums.json"}, {"url": "/.."}, {"url": "/"}])
def test_a_name_that_leads_out_of_the_folder_or_is_none_is_refused(site, tmp_path, file):
    file = file | {"url": site.url + file.get("url", "/a.bin")}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"it": {"title": "T", "files": [file]}}))
    with pytest.raises(BadInput, match=rf"^{tmp_path}/sources.yaml: .* of {file['url']} is no name of a file in the folder; give it a name without folders$"):
        download.main(download.Options("it", out=str(tmp_path / "out"), sources=str(tmp_path / "sources.yaml")))
    assert not site.asked and not (tmp_path / "a.bin").exists()


def test_an_address_without_an_end_of_its_bracket_is_none(get, tmp_path):
    with pytest.raises(BadInput, match=rf"^{tmp_path}/sources.yaml: http://\[::1/a: not an address that can be fetched"):
        get(url="http://[::1/a")


def test_folders_that_cannot_be(get, site, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(BadInput, match=r"out: cannot be made: File exists; give another --out"):
        get()
    (tmp_path / "out").unlink()
    with pytest.raises(BadInput, match=r"proc/nothing/here: cannot be made"):
        get("--out", "/proc/nothing/here")


@pytest.mark.parametrize("text", ['{"a.bin"', "[]", '{"a.bin": 3}'])
def test_damaged_recorded_checksums(get, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/checksums.json").write_text(text)
    with pytest.raises(BadInput, match=r"checksums.json: .*; delete it"):
        get()


def test_a_source_of_a_title_only(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text("it: {title: T}")
    download.main(download.Options("it", sources=str(tmp_path / "s.yaml")))
    assert capsys.readouterr().out == "T\nlicence: not named\npage:    not named\n"


def archive(kind, names):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            for name in names:
                file.writestr(name, name)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as file:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(name)
                file.addfile(member, io.BytesIO(name.encode()))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives(get, site, tmp_path, capsys, kind):
    site.files[f"/a.{kind}"] = archive(kind, ["x/one.txt", "two.txt"])
    (tmp_path / "out/x").mkdir(parents=True)
    (tmp_path / "out/x/old").touch()
    get(name=f"a.{kind}", unpack=True)
    assert (tmp_path / "out/x/one.txt").read_text() == "x/one.txt" and (tmp_path / "out/two.txt").exists()
    assert (tmp_path / "out/x/old").exists() and "2 files unpacked" in capsys.readouterr().out
    get(name=f"a.{kind}", unpack=True)
    assert "was unpacked before" in capsys.readouterr().out


def test_bad_archives(get, site, tmp_path):
    site.files["/a.tar.gz"] = archive("tar.gz", ["../../outside"])
    with pytest.raises(BadInput, match=r"a.tar.gz: cannot be unpacked .*outside"):
        get(name="a.tar.gz", unpack=True)
    assert not (tmp_path.parent / "outside").exists() and not (tmp_path / "outside").exists()
    site.files["/b.zip"] = archive("zip", ["x" * 1000])[:-30]
    with pytest.raises(BadInput, match=r"b.zip: cannot be unpacked"):
        get(name="b.zip", unpack=True)


def test_a_damaged_header_is_no_end_of_an_archive(tmp_path):
    plain = gzip.decompress(archive("tar.gz", ["one.txt", "two.txt"]))
    (tmp_path / "a.tar").write_bytes(plain[:1030] + bytes([plain[1030] ^ 1]) + plain[1031:])
    with pytest.raises(BadInput, match=r"a.tar: cannot be unpacked \(what stands at byte 1,024 is neither"):
        unpack_archive(tmp_path / "a.tar", tmp_path / "out")
    (tmp_path / "a.tar").write_bytes(plain)
    assert unpack_archive(tmp_path / "a.tar", tmp_path / "out") == 2


def test_the_shipped_sources(tmp_path, capsys):
    def run(*words):
        download.main(cli.parse(download.Options, list(words), ("name",)))
        return capsys.readouterr().out

    listed = run()
    table = download.read_sources(str(download.ROOT / "configs/downloads.yaml"))
    for name, source in table.items():
        assert f"{name:22} {source['title']}" in listed
        assert {"title", "page", "licence"} <= source.keys() <= {"title", "page", "licence", "files", "by_hand", "then"}
        assert source.get("files") or source.get("by_hand")
        for file in source.get("files", []):
            assert file["url"].startswith("http") and file.keys() <= {"url", "checksum", "bytes", "unpack", "name"}
            assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", file.get("checksum", "md5:" + "0" * 32))
    shown = run("flickr30k", "--out", str(tmp_path / "f"))
    assert "to be done by hand:\n  1. Open https://" in shown and f"{tmp_path}/f/flickr30k-images/" in shown
    assert not (tmp_path / "f").exists()
    with pytest.raises(BadInput, match="no source imagenet; there are karpathy, coco-captions"):
        run("imagenet")
    with pytest.raises(BadInput, match=r"cannot be read \(No such file"):
        run("x", "--sources", str(Path(tmp_path, "absent")))


ORIGINAL_FILES = ["LightningDot.pt", "flickr-ft.pt", "coco-ft.pt", "uniter-base.pt", "bert-base-cased.pt", "coco_meta.json", "flickr_meta.json"]


@pytest.mark.parametrize("name", ORIGINAL_FILES)
def test_the_originals_files_are_known_by_name(name, tmp_path, capsys):
    """Where each was, that it is gone from there, and a command that this repository has for one that is found elsewhere."""
    download.main(cli.parse(download.Options, [name, "--out", str(tmp_path / "f")], ("name",)))
    shown = capsys.readouterr().out
    for container in ("acvrpublicycchen", "convaisharables"):
        assert f"https://{container}.blob.core.windows.net/lightningdot/{name}" in shown
    assert "neither can be read any more" in shown and f"{tmp_path}/f/{name.removesuffix('.pt')}" in shown
    script, words = re.search(r"A file found elsewhere.*: python scripts/(\w+)\.py (.*)", shown).groups()
    commands = {"convert_checkpoint": (convert_checkpoint.Options, ("src", "dst")), "build_captions": (build_captions.Options, ())}
    cli.parse(commands[script][0], shlex.split(words), commands[script][1])


def test_the_commands_behind_a_download_are_real():
    table = download.read_sources(str(download.ROOT / "configs/downloads.yaml"))
    for name in ("multi30k", "stair", "coco-cn"):
        words = shlex.split(table[name]["then"])
        assert words[:2] == ["python", "scripts/build_captions.py"]
        cli.parse(build_captions.Options, words[2:])
