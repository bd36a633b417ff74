"""A digest of a JSON mapping, in the mapping: settings that somebody changed, or that were damaged, are noticed where they are read.

    write_json(path, with_digest(values))
    check_digest(path, values, "copy the checkpoint again")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.errors import BadInput

DIGEST = "digest"  # the key beside the others


def with_digest(values: Mapping[str, Any], without: Iterable[str] = (), more: bytes = b"") -> dict[str, Any]:
    """A mapping of what JSON can say, and its digest.

    Args:
        without: keys of which the digest says nothing
        more: content of another file of which it shall tell, too
    """
    return {**values, DIGEST: _digest_of(values, without, more)}


def check_digest(path: str | Path, values: Mapping[str, Any], advice: str, without: Iterable[str] = (), more: bytes = b"") -> None:
    """Raise BadInput where the mapping read from ``path`` has a digest, and it is that of another one; as `with_digest`."""
    if DIGEST in values and values[DIGEST] != _digest_of(values, without, more):
        raise BadInput(f"{path}: not what was written, by its {DIGEST}; {advice} (or remove {DIGEST} from it to take it as it is)")


def _digest_of(values: Mapping[str, Any], without: Iterable[str], more: bytes) -> str:
    left_out = {DIGEST, *without}
    text = json.dumps({key: value for key, value in values.items() if key not in left_out}, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass") + more, digest_size=8).hexdigest()
