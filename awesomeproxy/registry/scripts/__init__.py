"""The scripts that Redis runs for us, each of them one change or one look.

Redis does them one after the other, and wholly or not at all, which is all the locking that
there is.  Each answers with one text: its first word says how it went.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

# Those that may have been done although nobody has heard so.
WRITES = frozenset({"write", "mend", "join", "leave", "report", "certify", "answer"})
NAMES = (*sorted(WRITES), "enter", "since", "beat", "hash")


@cache
def script(name: str) -> bytes:
    """Its text, with what all begin with."""
    parts = ["prelude", name] if name == "enter" else ["prelude", "epoch", name]
    return b"".join(files(__name__).joinpath(f"{part}.lua").read_bytes() for part in parts)


@cache
def digest(name: str) -> str:
    """What Redis knows it by."""
    return hashlib.sha1(script(name)).hexdigest()
