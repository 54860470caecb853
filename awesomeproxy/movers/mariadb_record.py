"""What is written down of a closed database, beside its tables."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from awesomeproxy.movers.mariadb_definitions import Definition

RECORD = "awesomeproxy_record"  # the table that has it


@dataclass
class Closed:
    """What is written down of a closed database."""

    database: str
    stage: str
    charset: str
    collation: str
    comment: str
    tables: dict[str, str]  # what they are called now: what they were called
    definitions: list[Definition] = field(default_factory=list)
    facts: list[list[str]] = field(default_factory=list)
    left: bool = False  # it has been moved away for good: this is only what lies about

    def as_text(self) -> str:
        """For the record's table."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, written: str) -> Closed:
        """As the record's table has it."""
        read: dict[str, Any] = json.loads(written)
        read["definitions"] = [
            Definition(each["kind"], each["called"], tuple(each["statements"]))
            for each in read["definitions"]
        ]
        return cls(**read)
