"""A real Milvus server, as PyPI's milvus package brings it: python tests/milvus_server.py FOLDER PORT, run by the Python of
an environment of its own. It prints a line once it answers, and stops with its standard input. User root, password Milvus.
"""

import socket
import sys

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


default_server.set_base_dir(sys.argv[1])
default_server.config.try_bind_port = bound
default_server.listen_port = int(sys.argv[2])
default_server.config.set("authorization_enabled", True)
default_server.config.extra_configs = {"common.gracefulStopTimeout": 2, "common.session.ttl": 5}
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
