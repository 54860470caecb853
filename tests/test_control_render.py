"""What people are shown."""

from __future__ import annotations

import time
import tomllib
from typing import Any

import pytest
from control_stage import LEDGER, NODE, RECEIPT, a_site

from awesomeproxy.control import render
from awesomeproxy.control.text import Style, clean, duration, table

PLAIN = Style()


def test_columns_line_up() -> None:
    text = table(("A", "BB"), [("long", 1), ("x", 1000)], PLAIN, right=["BB"])
    assert text.splitlines() == ["A       BB", "long     1", "x     1000"]


def test_colours_do_not_move_columns() -> None:
    rows = [("open", "x"), ("holding", "y")]
    coloured = table(("A", "B"), rows, Style(colour=True), states=["A"])
    plain = table(("A", "B"), rows, PLAIN, states=["A"])
    assert coloured != plain
    for code in ("\033[32m", "\033[33m", "\033[2m", "\033[0m"):
        coloured = coloured.replace(code, "")
    assert coloured == plain


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.25, "250 ms"),
        (1, "1.0 s"),
        (12.34, "12.3 s"),
        (65, "1m 05s"),
        (3700, "1h 01m"),
        (90000, "1d 01h"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_nothing_can_write_on_the_terminal_but_text() -> None:
    assert clean("a\x1b[2J\r\nb\x9b\u202e") == "a\\x1b[2J\\r\\nb\\x9b\\u202e"
    assert clean("grün") == "grün"


def test_status_is_a_table_of_sites_with_their_troubles() -> None:
    moving = a_site(
        "shop", state="draining", trouble="unknown", migration={"target": "new", "step": "drain"}
    )
    text = render.status({"node": NODE, "sites": [a_site(), moving]}, PLAIN)
    assert text.splitlines() == [
        "n1: awesomeproxy 0.1.0, pid 42, up 1h 01m, 5 of 16000 connections, 0 held, "
        "listening on tcp:80, registry local",
        "",
        "SITE  STATE     BACKEND  GEN  IN FLIGHT  HELD  REQUESTS  FAILED  SERVERS",
        "blog  open      old        6          2     0      1200       0  1/2 up",
        "shop  draining  old        6          2     0      1200       0  1/2 up",
        "",
        "blog: http://10.0.0.2:80 is down: refused",
        "shop: unknown",
        "shop: is moving to new: drain",
        "shop: http://10.0.0.2:80 is down: refused",
    ]


def test_ambiguous_requests_are_not_hidden() -> None:
    unsure = a_site(counters={**LEDGER, "ambiguous": 2})
    text = render.status({"node": NODE, "sites": [unsure]}, PLAIN)
    assert "blog: 2 requests are ambiguous: they may have been carried out" in text


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (None, "blog: has no certificate: no"),
        (90_000, "blog: needs another certificate, as the present one ends in 1d 00h: no"),
        (-1, "blog: needs another certificate, as the present one has expired: no"),
    ],
)
def test_a_certificate_that_is_not_renewed_is_told_with_its_end(
    left: float | None, said: str
) -> None:
    ends = None if left is None else time.time() + left
    acme = {"error": "no", "not_after": ends, "next_look": None}
    assert said in render.status({"node": NODE, "sites": [a_site(acme=acme)]}, PLAIN).splitlines()


def test_connections_too_many_are_told_as_such() -> None:
    node = {**NODE, "connections": 31, "max_connections": 20}
    assert "20 of 20 connections and 11 turned away" in render.node_line(node)


def test_a_site_whose_servers_nobody_verifies_says_so() -> None:
    text = render.site_details({"sites": [a_site(warnings=["it is so"])]}, PLAIN)
    assert "  warning       it is so" in text.splitlines()


def test_a_node_without_sites_says_what_to_do() -> None:
    text = render.status({"node": NODE, "sites": []}, PLAIN)
    assert text.endswith("no sites; add one with `awesomeproxy site add`")


def test_one_site_is_shown_in_detail() -> None:
    site = a_site(path="/x", expires=time.time() + 300.5, state="holding", by="pause")
    lines = render.site_details({"sites": [site]}, PLAIN).splitlines()
    assert lines == [
        "blog: holding",
        "  asked for as  blog.example/x",
        "  backend       old",
        "  generation    6 by pause",
        "  hold ends     in 5m 00s",
        "  in flight     2, and 0 tunnels",
        "  held          0 requests, 0 bytes",
        "  connections   4 to its servers",
        "  counted       1200 taken in, 12 held, 12 released, 1 retried",
        "",
        "BACKEND  SERVER              HEALTH",
        "old *    http://10.0.0.1:80  up",
        "old *    http://10.0.0.2:80  down: refused",
        "new      http://10.0.0.3:80  up",
    ]


def test_a_receipt_names_every_worker() -> None:
    assert render.receipt({**RECEIPT, "closed": 2}, PLAIN).splitlines() == [
        "blog: holding on old at generation 7; drained in 250 ms; 2 cut",
        "  n1 0: 0 in flight, 0 connections, 3 held",
    ]


def test_a_ledger_lists_its_steps() -> None:
    assert render.ledger(LEDGER, PLAIN).splitlines() == [
        "blog: old -> new done at generation 8",
        "  held for            300 ms",
        "  longest added wait  310 ms",
        "  requests            1200 taken in, 12 held, 12 released, 1 retried",
        "  check               2 ms",
        "  hold                4 ms",
        "  drain               250 ms",
    ]


def test_a_ledger_names_who_is_not_in_it() -> None:
    text = render.ledger({**LEDGER, "silent": ["web2", "web3"]}, PLAIN)
    assert text.splitlines()[4] == "  silent              web2, web3: not in these numbers"


def test_a_plan_is_numbered() -> None:
    plan: dict[str, Any] = {
        "site": "blog",
        "source": "old",
        "target": "new",
        "plan": [{"step": "hold", "what": "hold blog"}],
        "problems": ["new is down"],
    }
    assert render.migration(plan, PLAIN).splitlines() == [
        "blog: old -> new",
        "  1. hold: hold blog",
        "  problem: new is down",
        "it would not be begun",
    ]


def test_a_plan_tells_how_long_the_pause_will_be() -> None:
    plan = {"site": "blog", "source": "a", "target": "b", "plan": []}
    known = {"predicted": 0.31, "migration": 7, "at_most": 20.0}
    text = render.migration({**plan, "pause": known}, PLAIN)
    assert "pause: about 310 ms, which the last such move took (migration 7); undone" in text
    unknown = {"predicted": None, "migration": None, "at_most": 20.0}
    text = render.migration({**plan, "pause": unknown}, PLAIN)
    assert "pause: not known before it begins" in text


def test_an_empty_history_says_so() -> None:
    assert render.history({"migrations": []}, PLAIN) == "no migrations"


def test_a_definition_is_toml_with_its_placement_as_remarks() -> None:
    definition = {
        "hosts": ["*.blog.example", 'b"c'],
        "max_body": 1024,
        "reuse_unsafe": 0.5,
        "hold": {"max_time": "60s"},
        "backends": {"old": {"servers": ["http://h:1"], "health": {"path": "/"}}},
    }
    answer = {"source": "command", "definition": definition, "placement": {"backend": "old"}}
    text = render.definition(answer, PLAIN)
    assert tomllib.loads(text) == definition
    assert text.startswith("# from: command\n# backend: old\n")


def test_a_reload_that_changes_nothing_says_so() -> None:
    assert render.reloaded({"added": [], "changed": [], "removed": []}, PLAIN) == (
        "nothing has changed"
    )


def test_a_change_says_what_and_at_which_generation() -> None:
    answer = {"site": "blog", "backend": "c", "generation": 7}
    assert render.changed("added")(answer, PLAIN) == "blog, backend c: added at generation 7"
    assert render.changed("removed")({"site": "blog"}, PLAIN) == "blog: removed"
