"""The exceptions that every command turns into one line and an exit status (``configs.cli.run``)."""


import re


class BadInput(ValueError):
    """Bad input: a missing or damaged file, a mismatched checkpoint, an impossible setting.

    The message is one line that names the file and key, what was found, what was expected and what to do.
    Every command prints it as ``error: ...`` and exits with status 2 (``configs.cli.run``).
    """


class CannotWrite(BadInput):
    """The disk is full or not writable: no record is at fault, and going on with the next one helps nobody."""


class Unavailable(BadInput):
    """Another program, a search engine for instance, does not answer: nothing is wrong with what was asked, and it may work later."""


STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Stopped(Exception):
    """A run was asked to stop, and has saved what it needs to go on: exit status 75, the same command goes on."""


class InterruptTold(KeyboardInterrupt):
    """Ctrl-C has ended a command that this one had started, and that has said so."""


_ADVICE = re.compile(r"weights_only|Weights only load failed")


def reason_of(error: BaseException, longest: int = 200) -> str:
    """What a library's exception says, in one line. The advice of torch to unpickle what holds more than tensors, and that of
    transformers to run a model's own code, are left out."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    if "trust_remote_code" in text:
        return "it needs code of its own, which is not run"
    if not _ADVICE.search(text):
        return text[:longest] or repr(error)[:longest]
    if "TorchScript" in text:
        return "it is a TorchScript archive, a program, and no file of tensors"
    named = re.search(r"GLOBAL (\S+)", text)
    return f"it holds more than tensors and is not unpickled{f': it names {named[1]}' if named else ''}"
