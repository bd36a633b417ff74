"""A real Milvus server, as PyPI's milvus package brings it: python tests/milvus_server.py FOLDER PORT, run by the Python of
an environment of its own. It prints a line once it answers, and stops with its standard input. User root, password Milvus.
"""

import sys

from milvus import default_server

default_server.set_base_dir(sys.argv[1])
default_server.listen_port = int(sys.argv[2])
default_server.config.set("authorization_enabled", True)
default_server.config.extra_configs = {"common.gracefulStopTimeout": 2, "common.session.ttl": 5}
default_server.start()
try:
    print("ready", flush=True)
    sys.stdin.read()
finally:
    server = default_server.server_proc
    server.terminate()
    server.wait()  # stop() alone kills it after a second, and what is killed cannot start again for a while
    default_server.stop()
