"""A blog moves between two servers, and cables are pulled, or a pool is full.

What a network does not carry for some seconds it carries then.  What takes longer, or does
not fit, leads back to the source.  No post fails, is lost, or there twice.
"""

from __future__ import annotations

from pathlib import Path

from blog_stage import disks as disks
from blog_stage import passes
from daemon_stage import twisted_fixture, twisted_test
from fault_stage import DONE, UNDONE, Moving, a_blog, pull_cables, writes
from servers_stage import Servers, two_servers

servers = twisted_fixture(two_servers)


@twisted_test
async def test_the_network_fails_for_some_seconds(servers: Servers, disks: Path) -> None:
    """The cable of the target, and that of the source, are pulled for a while."""
    blog = await a_blog(servers, disks)
    load = writes(blog)
    await load.flows()
    steps = ("presync", "sync", "attach", "verify")
    await pull_cables(blog, load, steps)
    await passes(blog, load, blog.at)


@twisted_test
async def test_the_pool_of_the_target_is_full(servers: Servers, disks: Path) -> None:
    """What does not fit is undone, and fits when there is room."""
    blog = await a_blog(servers, disks)
    load = writes(blog)
    await load.flows()
    for before, step in (("presync", "presync"), ("hold", "sync")):
        moving = Moving(blog, before)
        await moving.stops()
        blog.paint(moving.source)
        if step != before:
            moving.go_on(step)
            await moving.stops()
        blog.fill(moving.target)
        moving.go_on()
        assert await moving.ends() == UNDONE
        assert "out of space" in moving.said["reason"], moving.said
        await blog.empty(moving.target)
        await load.flows(5)
    moving = Moving(blog, "none")
    assert await moving.ends() == DONE
    await passes(blog, load, blog.at)
