"""A real Milvus server, as PyPI's milvus package brings it: python tests/milvus_server.py FOLDER PORT, run by the Python of
an environment of its own. It prints a line once it answers, and stops with its standard input. User root, password Milvus.
"""

import os
import socket
import sys
from pathlib import Path

from milvus import default_server


def bound(port):
    """A socket at a port, also at one that a server has just left; without that the package takes another port in silence."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
        found.listen()
        return found
    except OSError:
        return None


def free_port():
    with bound(0) as found:
        return found.getsockname()[1]


def etcd_settings(path, clients):
    """A file for the etcd that is part of the server: the package gives it a port for its clients, and leaves it a fixed one for
    its peers, of which it has none, so that a second server on a machine would not start."""
    own, peers = f"http://localhost:{clients}", f"http://localhost:{free_port()}"
    settings = {
        "name": "default", "listen-client-urls": own, "advertise-client-urls": own,
        "listen-peer-urls": peers, "initial-advertise-peer-urls": peers, "initial-cluster": f"default={peers}",
    }  # fmt: skip
    path.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    return str(path)


folder, etcd_port = Path(sys.argv[1]), free_port()
default_server.set_base_dir(str(folder))
default_server.config.try_bind_port = bound
default_server.listen_port = int(sys.argv[2])
default_server.config.set("authorization_enabled", True)
default_server.config.set("etcd_port", etcd_port)
default_server.config.extra_configs = {"common.gracefulStopTimeout": 2, "common.session.ttl": 5}
os.environ["ETCD_CONFIG_PATH"] = etcd_settings(folder / "etcd.yaml", etcd_port)
default_server.start()
assert default_server.listen_port == int(sys.argv[2])
try:
    print("ready", flush=True)
    sys.stdin.read()
finally:
    server = default_server.server_proc
    server.terminate()
    server.wait()  # stop() alone kills it after a second, and what is killed cannot start again for a while
    default_server.stop()
