"""Progress on a terminal."""

from __future__ import annotations

import io

import pytest

from awesomeproxy.control.meter import Meter, bar
from awesomeproxy.control.text import Style

MB = 1 << 20


@pytest.mark.parametrize(
    ("params", "shown"),
    [
        (
            {"bytes": 45 * MB, "total": 100 * MB, "rate": 11 * MB},
            "[###########-------------]  45%  45.0 MB of 100.0 MB  11.0 MB/s  5.0 s left",
        ),
        ({"bytes": 0, "total": 10}, "[------------------------]   0%  0 bytes of 10 bytes"),
        (
            {"bytes": 10, "total": 10, "rate": 5},
            "[########################] 100%  10 bytes of 10 bytes  5 bytes/s",
        ),
        ({"bytes": 3 * MB, "rate": MB}, "3.0 MB  1.0 MB/s"),
        ({"bytes": 0, "total": 0, "rate": 0}, "0 bytes"),
        # What grew while it was carried.
        (
            {"bytes": 12, "total": 10, "rate": 1},
            "[########################] 100%  12 bytes of 12 bytes  1 bytes/s",
        ),
    ],
)
def test_a_bar_says_how_far_it_is(params: dict[str, int], shown: str) -> None:
    """As far as that is known."""
    assert bar(params) == shown


def told(*lines: dict[str, object]) -> str:
    stream = io.StringIO()
    meter = Meter(stream, Style(colour=False))
    for line in lines:
        meter.tell(line)
    meter.close()
    return stream.getvalue()


def test_a_line_for_each_step_and_one_bar_that_moves() -> None:
    """The bar is written over, by the next one and by the next line."""
    moving = {"step": "sync", "message": "", "bytes": 5, "total": 10}
    text = told(
        {"step": "fence", "message": "close it"},
        moving,
        {**moving, "bytes": 10},
        {"step": "attach", "message": "open it"},
    )
    assert text == (
        "  fence      close it\n"
        "\r\033[K  sync       [############------------]  50%  5 bytes of 10 bytes"
        "\r\033[K  sync       [########################] 100%  10 bytes of 10 bytes"
        "\r\033[K  attach     open it\n"
    )


def test_what_comes_after_a_bar_begins_on_a_line_of_its_own() -> None:
    """As the command's answer does."""
    assert told({"step": "sync", "bytes": 5}).endswith("5 bytes\n")
    assert told({"step": "sync", "message": "m"}).endswith("  m\n")


def test_what_a_daemon_tells_is_harmless_on_a_terminal() -> None:
    """It may have names in it that are not."""
    assert "\033]" not in told({"step": "a\033]0;x", "message": "b\033]0;y\n"})
