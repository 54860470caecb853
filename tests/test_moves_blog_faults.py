"""A blog moves between two servers, and what takes part in it is killed, at every step in turn.

Until the commit everything leads back to the source, after it everything leads to the
target, and no post fails, is lost, or there twice; save that with the daemon the connections
of its clients die.
"""

from __future__ import annotations

from pathlib import Path

from blog_stage import disks as disks
from blog_stage import passes
from daemon_stage import twisted_fixture, twisted_test
from fault_stage import (
    DONE,
    STEPS,
    UNDONE,
    Killer,
    Moving,
    a_blog,
    intact,
    kill_the_daemon,
    sleep,
    writes,
)
from servers_stage import Servers, two_servers

from awesomeproxy.migrate.steps import ORDER

servers = twisted_fixture(two_servers)

RUN = (  # by movers, in steps, and what there is in their command lines
    ("check", "mariadb", ""),
    ("presync", "mariadb-dump", ""),
    ("presync", "zfs", " send .*-[0-9]+ $"),
    ("presync", "zfs", " receive .*/blog $"),
    ("fence", "mariadb", ""),
    ("sync", "mariadb", ""),
    ("sync", "zfs", " send .*-[0-9]+ $"),
    ("sync", "zfs", " receive .*/blog $"),
    ("attach", "mariadb-dump", ""),
    ("compare", "mariadb", ""),
    ("clean", "mariadb", ""),
)
RESIDENT = ("python3", " -ISc ")  # runs short commands
SHARED = ("ssh", r"\[mux\]")  # a connection
# Before them a daemon that dies leaves what it leaves before the next step as well.
LEFT_OUT = ("check", "drain", "mount", "compare", "switch")


@twisted_test
async def test_the_daemon_is_killed_at_every_step(servers: Servers, disks: Path) -> None:
    """The next one leads it to the end that the commit has decided."""
    blog = await a_blog(servers, disks)
    load = writes(blog)
    await load.flows()
    await kill_the_daemon(blog, load, [each for each in STEPS if each not in LEFT_OUT])
    intact(blog, await load.stop())


@twisted_test
async def test_a_process_of_a_mover_is_killed_at_every_step(servers: Servers, disks: Path) -> None:
    """Until the commit that leads back, and the next try succeeds."""
    blog = await a_blog(servers, disks)
    blog.paint(blog.at)  # for a stream that takes its time
    load = writes(blog)
    await load.flows()
    for step, program, words in RUN:
        moving = Moving(blog, "hold" if step == "sync" else step)
        await moving.stops()
        if step == "sync":
            blog.paint(moving.source)
            moving.go_on(step)
            await moving.stops()
        killer = Killer(servers, program, words)
        moving.go_on()
        outcome = await moving.ends()
        assert await killer.stop(), f"{step}: no {program}"
        assert outcome == (DONE if step == "clean" else UNDONE)
        await load.flows(5)
    await passes(blog, load, blog.at)


@twisted_test
async def test_what_stays_between_commands_is_killed(servers: Servers, disks: Path) -> None:
    """A new one takes its place, and nobody notices."""
    blog = await a_blog(servers, disks)
    load = writes(blog)
    await load.flows()
    first, *others = ("presync", "fence", "sync", "attach", "compare", "clean")
    moving = Moving(blog, first)
    for step in (*others, "none"):
        await moving.stops()
        for program, words in (RESIDENT, SHARED):
            await Killer(servers, program, words).kills()
        moving.go_on(step)
    assert await moving.ends() == DONE
    await passes(blog, load, blog.at)


@twisted_test
async def test_the_database_of_the_source_is_killed_at_every_step_of_the_pause(
    servers: Servers, disks: Path
) -> None:
    """It is started again a second later, and the blog goes on where it is said to be."""
    blog = await a_blog(servers, disks)
    for step in ("presync", "fence", "sync", "attach", "start", "clean"):
        moving = Moving(blog, step)
        await moving.stops()
        await moving.source.kill("mariadbd")
        moving.go_on()
        await sleep(1.0)
        blog.start_database(moving.source)
        assert await moving.ends() == (DONE if ORDER[step] > ORDER["compare"] else UNDONE)
        await blog.database_runs(moving.source)
        if step == "presync":  # when the blog itself would have failed
            load = writes(blog)
        await load.flows(5)
    await passes(blog, load, blog.at)
