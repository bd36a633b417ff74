"""Starts real training processes without importing torch anew for each: reads requests, forks, answers.

{"run": ["pretrain.py", "--config", ...], "env": {...}, "log": file, "file_size": bytes} -> pid
{"wait": pid} -> exit status, negative for a signal
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["OMP_NUM_THREADS"] = "1"

import torch.utils.tensorboard  # noqa: F401  slow to import
import transformers  # noqa: F401

import pretrain
import train_itm
from configs import cli

COMMANDS = {
    "pretrain.py": (pretrain.main, pretrain.PretrainConfig),
    "train_itm.py": (train_itm.main, train_itm.CONFIGS),
}


def run(request: dict) -> None:
    """The child: what `python SCRIPT WORDS` does."""
    os.setsid()  # a group of its own, with its data workers
    os.environ.update(request["env"])
    with open(request["log"], "a") as log:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    if request["file_size"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], request["file_size"]))
    sys.argv = request["run"]
    cli.run(*COMMANDS[sys.argv[0]])


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "run" in request:
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    run(request)
                    status = 0
                except SystemExit as end:
                    status = end.code
                finally:
                    sys.stdout.flush(), sys.stderr.flush()
                    os._exit(status)
            answer = pid
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        print(answer, flush=True)


if __name__ == "__main__":
    main()
