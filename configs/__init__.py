"""What a run is told: YAML recipes, and the parser that turns them into dataclasses."""

import os
import signal
import sys
from types import TracebackType

INTERRUPTED = 128 + signal.SIGINT  # what a shell says of a command that Ctrl-C ended
INTERRUPTED_LINE = "stopped by Ctrl-C; what was there before is whole"


def _end_at_ctrl_c(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python calls with an exception that nobody has caught: Ctrl-C while a command still imports its modules is one line, as
    it is later (``configs.cli.run``)."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    from multiprocessing import parent_process  # slow to import for what hardly ever happens

    if parent_process() is None:  # a process that was started by another leaves the line to that one
        print(INTERRUPTED_LINE, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


sys.excepthook = _end_at_ctrl_c
