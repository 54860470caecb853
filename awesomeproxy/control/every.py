"""The table with every command: importing a module of commands enters them there."""

from __future__ import annotations

from awesomeproxy.control import applying, migrating, mounting, nodes, status
from awesomeproxy.control.commands import table

__all__ = ["applying", "migrating", "mounting", "nodes", "status", "table"]
