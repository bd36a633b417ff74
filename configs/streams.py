"""Standard input, output and error of a command, as whoever started it left them."""

import io
import os
import sys


def set_up_streams() -> None:
    """Let each of them be there, and show any name. One that was closed reads and writes nothing: else the next file that is opened, a
    database for instance, would get its number, and what a library prints there would be written into that."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(handle, True)
            setattr(sys, name, os.fdopen(handle, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
