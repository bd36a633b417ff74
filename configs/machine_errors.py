"""What the machine that a command runs on refuses, said in one line: no space, no memory, a stack that is too deep."""

import atexit
import errno
import re
import signal
import sys
import threading

_NO_MEMORY = re.compile(
    r"can't allocate memory|CUDA out of memory"
    r"|array is too big|Maximum allowed dimension exceeded|Storage size calculation overflowed"  # more than any machine has
)
_NO_FILES = re.compile(r"Too many open files|unable to open shared memory object|Failed to initialize cpuinfo")  # which reads some
_NO_PROCESSES = re.compile(r"can't start new thread|Resource temporarily unavailable")
MACHINE_ERRORS = (OSError, MemoryError, RuntimeError, ValueError)  # classes of which some errors are the machine's
TOLD: set[str] = set()  # lines with which the command has ended
_WORKER = re.compile(r"DataLoader worker \(pid.* (killed|exited)")


def line_of_machine_error(error: Exception) -> str | None:
    """What the machine, and no file's content, refuses; None for an error of another kind, which may be a bug of ours."""
    said = " ".join(str(error).split())[:200]
    if isinstance(error, RecursionError):
        return f"something that was given is nested too deeply to be followed ({said})"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError | ValueError) and _NO_MEMORY.search(said)):  # torch's, NumPy's
        return f"out of memory{f' ({said})' if said else ''}; give it less at a time, or more memory"
    if _NO_FILES.search(said):
        return f"more files were to be opened than this user may ({said}); use fewer workers, or raise the limit (ulimit -n)"
    if _NO_PROCESSES.search(said):
        return f"more processes or threads were to be started than this user may ({said}); use fewer workers, or raise the limit (ulimit -u)"
    if not isinstance(error, OSError):
        return f"{said}; perhaps memory ran out: use fewer workers, and start the same command again" if _WORKER.match(said) else None
    names = ": ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{names or 'a file'}: cannot be written, the disk is full; make room, and start the same command again"
    return f"{names}: {error.strerror}" if names and error.strerror else f"{type(error).__name__}: {said}"


def watch_threads() -> None:
    """A command begins, which has ended with no error yet."""
    TOLD.clear()
    threading.excepthook = say_why_a_thread_ended


def say_why_a_thread_ended(ended: threading.ExceptHookArgs) -> None:
    """What Python calls when a thread beside the command ends with an exception, TensorBoard's on a full disk for instance. What the
    machine refuses is one line there, too, and none where the command has ended with an error of its own."""
    error = ended.exc_value
    message = line_of_machine_error(error) if isinstance(error, MACHINE_ERRORS) else None
    if message is None:
        threading.__excepthook__(ended)
    elif not TOLD:  # else the command has failed, too, and says why
        print(f"warning: what was written beside this command is not whole: {message}", file=sys.stderr)


def end_quietly() -> None:
    """From here on there is nothing left to do: Ctrl-C ends the process while Python clears up, where it would be a traceback; not where it
    is ignored, as a shell has it for what it runs in the background."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # registered last, called first
