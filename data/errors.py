"""The exceptions that every command turns into one line and an exit status (``configs.cli.run``)."""


class BadInput(ValueError):
    """Bad input: a missing or damaged file, a mismatched checkpoint, an impossible setting.

    The message is one line that names the file and key, what was found, what was expected and what to do.
    Every command prints it as ``error: ...`` and exits with status 2 (``configs.cli.run``).
    """


class CannotWrite(BadInput):
    """The disk is full or not writable: no record is at fault, and going on with the next one helps nobody."""


STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Stopped(Exception):
    """A run was asked to stop, and has saved what it needs to go on: exit status 75, the same command goes on."""
