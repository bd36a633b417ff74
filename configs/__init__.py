"""What a run is told: YAML recipes, and the parser that turns them into dataclasses.

Commands import it before torch, since it says what must be said before torch starts its threads.
"""

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

# How long a thread of OpenMP spins before it sleeps when it waits for the others. As they come, threads spin for milliseconds: where
# other processes want the cores, it is often for one that cannot run, and a step takes many times as long. These bridge the gaps
# between the operations of a step and no more. Whoever says otherwise is heard.
WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}  # turns of a loop (GNU), milliseconds (LLVM, Intel)
if not os.environ.keys() & {"OMP_WAIT_POLICY", *WAITING}:
    os.environ.update(WAITING)
