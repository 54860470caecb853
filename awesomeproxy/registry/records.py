"""Records as they are kept in Redis: JSON, made here and read here."""

from __future__ import annotations

import json
from dataclasses import asdict
from sys import intern
from typing import Any, Literal, cast

from awesomeproxy.model import Mode, Placement
from awesomeproxy.registry.interface import Companion, Entry


def packed(value: Any) -> str:
    """A value as JSON, without a blank too many."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def placement_text(placement: Placement, change: str) -> str:
    """A placement, without its name, which is that of the record.

    :param change: what the change is called that has made it so.
    """
    fields = asdict(placement)
    del fields["site"]
    return packed({**fields, "change": change})


def placement_of(name: str, fields: dict[str, Any]) -> Placement:
    """The placement in a record."""
    return Placement(
        site=name,
        backend=intern(fields["backend"]),
        mode=Mode(fields["mode"]),
        generation=fields["generation"],
        by=intern(fields["by"]),
        expires=fields["expires"],
        then=cast(Literal["refuse", "resume"], intern(fields["then"])),
    )


def entry_text(entry: Entry, change: str) -> str:
    """A migration, and what the change is called that has made it so."""
    return packed({**asdict(entry), "change": change})


def entry_of(text: str) -> Entry:
    """The migration in a record."""
    fields = json.loads(text)
    del fields["change"]
    fields["along"] = tuple(Companion(**each) for each in fields["along"])
    return Entry(**fields)
