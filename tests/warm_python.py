"""A ``python`` that does not import torch anew for each command: what stands in its place in PATH asks this process to fork.

    with warm_python(folder) as environment:            # folder/python; environment: PATH and what else a shell gets
        subprocess.run(["bash", "-c", "python scripts/plan.py --help"], env=environment)

The child gets the command's words, folder, environment and open files, and runs it as ``python SCRIPT WORDS`` or ``python -c`` would,
in a process of its own whose exit status is the command's. Processes that it starts through ``sys.executable`` are forked as well. One
whose ``python`` is stopped gets SIGTERM.
"""

import array
import contextlib
import fcntl
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Run by the plain interpreter, which starts in some milliseconds: words and open files out, exit status in.
CLIENT = """#!{python} -SE
import array, json, os, socket, sys
files = sorted(int(name) for name in os.listdir("/proc/self/fd"))
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
files = [n for n in files if os.path.exists(f"/proc/self/fd/{{n}}") and n != server.fileno()]
message = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), files]).encode()
server.sendall(len(message).to_bytes(8, "big") + message)
for n in range(0, len(files), 200):
    server.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files[n : n + 200]))])
sys.exit(int(server.recv(8) or b"99"))
"""


@contextlib.contextmanager
def warm_python(folder: Path) -> Iterator[dict[str, str]]:
    """Start the process, put ``python`` into a folder, and give the environment in which a shell finds it."""
    address, client = str(folder / "socket"), folder / "python"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__, address, str(client)], env=environment, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert server.stdout.readline() == b"ready\n"
        yield environment
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # with whatever it still runs
        server.wait()


def serve(address: str, client: str) -> None:
    import torch.utils.tensorboard  # noqa: F401  slow to import, which is why this process is kept
    import transformers  # noqa: F401

    import eval_itm  # noqa: F401
    import pretrain  # noqa: F401
    import scripts.bench_retrieval
    import scripts.build_captions
    import scripts.extract_regions
    import scripts.reproduce  # noqa: F401
    import train_itm  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the helpers
    sys.executable = client
    multiprocessing.set_executable(client)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    os.close(1)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:  # waits for the command, and answers
            listener.close()
            answer(connection)
            os._exit(0)
        connection.close()


def answer(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
    words, where, environment, numbers = json.loads(connection.recv(length, socket.MSG_WAITALL))
    files = array.array("i")
    while len(files) < len(numbers):
        for _, _, received in connection.recvmsg(1, socket.CMSG_SPACE(200 * 4))[1]:
            files.frombytes(received)
    child = os.fork()
    if child == 0:
        connection.close()
        become(words, where, environment, dict(zip(numbers, files)))
    for number in files:
        os.close(number)
    ended = os.pidfd_open(child)
    if ended not in select.select([connection, ended], [], [])[0]:  # who asked is gone: it was stopped
        os.kill(child, signal.SIGTERM)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(str(status if status >= 0 else 128 - status).encode())


def become(words: list[str], where: str, environment: dict[str, str], files: dict[int, int]) -> None:
    """Be the command: its files under their numbers, its folder, its environment, its words."""
    above = max([*files, *files.values()]) + 1
    high = {number: fcntl.fcntl(file, fcntl.F_DUPFD, above) for number, file in files.items()}
    for number, file in high.items():
        os.dup2(file, number)  # inheritable
        os.close(file)
    for name, number in (("stdout", 1), ("stderr", 2)):  # those of the warm process know whether its own files can be sought in
        if number in files:
            setattr(sys, name, open(number, "w", encoding="utf-8", buffering=1, closefd=False))
    os.chdir(where)
    os.environ.clear()
    os.environ.update(environment)
    while words[0].startswith("-") and words[0] not in ("-c", "-m"):
        words = words[1:]  # of the interpreter, as multiprocessing gives them
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        status = exit_status(lambda: exec(words[1], {"__name__": "__main__"}))
    elif words[0] == "-m":
        sys.argv = words[1:]
        status = exit_status(lambda: runpy.run_module(words[1], run_name="__main__", alter_sys=True))
    else:
        sys.argv = list(words)
        status = exit_status(lambda: runpy.run_path(words[0], run_name="__main__"))
    with contextlib.suppress(Exception):
        sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


def exit_status(run: Callable[[], object]) -> int:
    """Run what the interpreter would run → the status that it would exit with; a traceback is printed."""
    try:
        run()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    serve(*sys.argv[1:])
