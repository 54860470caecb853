"""Commands of the operator's own, before and after the steps of a migration.

They run on this node, with what the step is about in their environment and, as JSON, on
their standard input.  Until the commit a hook that fails, or takes too long, rolls the
migration back; after it there is nothing to roll back, and its failure is only told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from awesomeproxy.migrate.plan import Plan
from awesomeproxy.model import Hook
from awesomeproxy.movers.shell import Shell, ShellError


class HookFailed(Exception):
    """A hook has failed; the message says which and why."""


class Hooks:
    """The hooks of one migration."""

    def __init__(self, hooks: Sequence[Hook], shell: Shell, plan: Plan) -> None:
        """
        :param shell: of this node.
        """
        names = {member.name for member in plan.members}
        self._hooks = [hook for hook in hooks if not hook.only or names & set(hook.only)]
        self._shell = shell
        self._plan = plan

    async def run(self, when: str, step: str, migration: int) -> None:
        """Run those for ``step``, one after the other.

        :param when: ``before`` or ``after``.
        :param migration: the number of the migration; 0 if it has none yet.
        :raise HookFailed: one of them has failed, and those behind it were not run.
        """
        for hook in self._hooks:
            if (hook.step, hook.when) == (step, when):
                await self._run(hook, migration)

    async def _run(self, hook: Hook, migration: int) -> None:
        main = self._plan.main
        facts = {
            "step": hook.step,
            "when": hook.when,
            "migration": migration,
            "name": main.name,
            "source": main.source,
            "target": main.target,
        }
        along = [asdict(member) for member in self._plan.along]
        env = {f"AWESOMEPROXY_{key.upper()}": str(value) for key, value in facts.items()}
        try:
            await self._shell.run(
                *hook.command,
                input=json.dumps({**facts, "along": along}).encode() + b"\n",
                time=hook.time,
                env=env,
                end_only=True,
            )
        except ShellError as problem:
            raise HookFailed(f"the hook {hook.when} the step {hook.step!r}: {problem}") from None
