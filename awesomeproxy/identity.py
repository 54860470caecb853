"""What a daemon is called where its name is not enough: in files that it leaves on other nodes.

Its state directory says so.  Where that is new the migrations are numbered from the beginning,
and what they are called must not be what others have been.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

FILE = "identity"


def identity(state_dir: Path) -> str:
    """That of the daemon whose state directory it is: a few letters and digits.

    :raise OSError: it can be neither read nor written.
    """
    path = state_dir / FILE
    try:
        if known := path.read_text().strip():
            return known
    except FileNotFoundError:
        pass
    new = path.with_suffix(".new")
    new.write_text(secrets.token_hex(6))
    os.replace(new, path)
    return path.read_text()
