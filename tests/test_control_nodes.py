"""The commands about nodes, and ``apply``: what is sent, and what people are shown."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from control_stage import NODE, a_site

from awesomeproxy.control import arguments, nodetext, render
from awesomeproxy.control.cli import Exit, main
from awesomeproxy.control.definitions import BadDefinition
from awesomeproxy.control.text import Style

PLAIN = Style()


def a_node(name: str, state: str = "live", **more: Any) -> dict[str, Any]:
    node = {
        "name": name,
        "life": 1,
        "state": state,
        "loss": "serve",
        "lease": 10.0,
        "silent": 0.8,
        "version": "0.9.0",
        "connections": 40,
        "held": 0,
        "in_flight": 31,
    }
    return node | more


ASLEEP: dict[str, Any] = {"connections": None, "held": None, "in_flight": None, "silent": 41.0}


def sent(words: str) -> tuple[str, dict[str, Any]]:
    args = arguments.parse(words.split())
    return args.remote.method, dict(args.remote.params(args))


@pytest.mark.parametrize(
    ("words", "method", "params"),
    [
        ("node list", "node.list", {}),
        (
            "node drain web2",
            "node.drain",
            {"node": "web2", "at_once": 1, "max_pause": 20.0, "dry_run": False},
        ),
        (
            "node drain web2 --to web3 --at-once 4 --max-pause 5s --dry-run",
            "node.drain",
            {"node": "web2", "to": "web3", "at_once": 4, "max_pause": 5.0, "dry_run": True},
        ),
        ("node fence web2 --yes", "node.fence", {"node": "web2", "force": False}),
        ("node fence web2 --force", "node.fence", {"node": "web2", "force": True}),
        ("node remove web2", "node.remove", {"node": "web2"}),
    ],
)
def test_a_command_line_becomes_a_request(words: str, method: str, params: dict[str, Any]) -> None:
    assert sent(words) == (method, params)


class TestFence:
    def test_a_script_has_to_be_sure(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["node", "fence", "web2"]) == Exit.USAGE
        assert "Is it off? If so, say it with --yes" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("said", "status"), [("no", Exit.USAGE), ("", Exit.USAGE), ("yes", Exit.UNREACHABLE)]
    )
    def test_people_are_asked(
        self, said: str, status: Exit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        terminal = io.StringIO(f"{said}\n")
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        assert main(["node", "fence", "web2", "--control", str(tmp_path / "none")]) == status


class TestApply:
    def test_all_sites_of_the_file_are_sent(self, tmp_path: Path) -> None:
        file = tmp_path / "sites.toml"
        file.write_text('[sites.blog]\nhosts = ["b"]\n[sites.shop]\nhosts = ["s"]\n')
        tables = {"blog": {"hosts": ["b"]}, "shop": {"hosts": ["s"]}}
        assert sent(f"apply {file}") == ("apply", {"sites": tables, "remove": False})
        assert sent(f"apply {file} --remove") == ("apply", {"sites": tables, "remove": True})

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ('[node]\nname = "n"\n[sites.blog]\n', "has node; sites are all that is applied"),
            ("[sites]\nblog = 3\n", "sites: is no table"),
            ("[sites.blog]\nbackends = 3\n", "backends: is no table"),
            ("[sites.blog]\nsince = 2026-01-01\n", "has a date"),
            ("[", "is not TOML"),
        ],
    )
    def test_a_file_that_cannot_be_is_told_why(
        self, text: str, problem: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "sites.toml"
        file.write_text(text)
        with pytest.raises(BadDefinition, match=problem):
            sent(f"apply {file}")

    def test_what_has_changed_is_shown(self) -> None:
        result = {"added": ["a", "b"], "changed": ["c"], "unchanged": ["d"] * 7, "removed": []}
        assert render.applied(result, PLAIN).splitlines() == [
            "added: a, b",
            "changed: c",
            "unchanged: 7",
        ]

    def test_of_very_many_sites_only_the_first_are_named(self) -> None:
        names = [f"site{number}" for number in range(1000)]
        first, second = render.applied({"added": names}, PLAIN).splitlines()
        assert first.endswith("site18, site19 and 980 more")
        assert second == "unchanged: 0"
        few = render.applied({"added": names[:21]}, PLAIN)
        assert "site20\n" in few  # one more is as short as to say so


class TestShown:
    def test_every_node_and_the_registry(self) -> None:
        result = {
            "node": "web1",
            "nodes": [
                a_node("web1"),
                a_node("web2", "gone", **ASLEEP),
                a_node("web3", "fenced", **ASLEEP | {"loss": "hold"}),
            ],
            "registry": "redis://10.0.0.5:6379, epoch 3",
            "replicas": {"needed": 2, "there": 1},
            "trouble": "",
        }
        assert nodetext.listing(result, PLAIN).splitlines() == [
            "NODE   STATE   LAST BEAT  ON LOSS  CONNECTIONS  HELD  IN FLIGHT  VERSION  REMARK",
            "web1*  live       800 ms  serve             40     0         31  0.9.0",
            "web2   gone       41.0 s  serve              -     -          -  0.9.0    "
            "pauses wait for it; if it is off: awesomeproxy node fence web2",
            "web3   fenced          -  hold               -     -          -  0.9.0",
            "registry: redis://10.0.0.5:6379, epoch 3, 1 of 2 replicas",
        ]

    @pytest.mark.parametrize(
        ("replicas", "said"),
        [
            (None, ""),
            ({"needed": 0, "there": None}, ""),
            ({"needed": 0, "there": 0}, ", no replica"),
            ({"needed": 0, "there": 1}, ", 1 replica"),
            ({"needed": 0, "there": 2}, ", 2 replicas"),
            ({"needed": 1, "there": 0}, ", 0 of 1 replicas"),
        ],
    )
    def test_how_many_replicas_there_are(self, replicas: Any, said: str) -> None:
        result = {"node": "web1", "nodes": [a_node("web1")], "registry": "Redis", "trouble": ""}
        text = nodetext.listing(result | {"replicas": replicas}, PLAIN)
        assert text.splitlines()[-1] == f"registry: Redis{said}"

    def test_status_tells_of_the_others(self) -> None:
        cluster = {
            "nodes": [a_node("web1"), a_node("web2", "gone"), a_node("web3")],
            "replicas": {"needed": 1, "there": 0},
            "trouble": "0 of 1 replicas",
            "silent": ["web2", "web3"],
        }
        text = render.status({"node": NODE, "cluster": cluster, "sites": [a_site()]}, PLAIN)
        assert text.splitlines()[1:5] == [
            "cluster: 2 live, 1 gone; the registry has 0 of 1 replicas",
            "web2 is gone: pauses wait for it",
            "no answer from web3: not in the sums",
            "no pause can complete: 0 of 1 replicas",
        ]

    def test_what_was_counted_here_only_says_so(self) -> None:
        text = render.status({"node": NODE, "counted": "here", "sites": [a_site()]}, PLAIN)
        assert text.splitlines()[2:] == [
            "SITE  STATE  BACKEND  GEN  IN FLIGHT  HELD  REQUESTS HERE  FAILED HERE  SERVERS",
            "blog  open   old        6          2     0           1200            0  1/2 up",
            "",
            "blog: http://10.0.0.2:80 is down: refused",
        ]

    def test_a_site_is_shown_on_each_node(self) -> None:
        row = {
            "state": "holding",
            "generation": 6,
            "in_flight": 0,
            "held": 3,
            "tunnels": 0,
            "trouble": "",
        }
        nodes = {"web1": row, "web2": row | {"state": "draining", "in_flight": 1}}
        text = render.site_details({"sites": [a_site(nodes=nodes)]}, PLAIN)
        assert "web1  holding     6          0     3        0\n" in text
        assert "web2  draining    6          1     3        0\n" in text


LINE: dict[str, Any] = {
    "name": "blog",
    "source": "web2",
    "target": "web3",
    "along": ["filesystem:www", "news"],
}


class TestDrained:
    def shown(self, **more: Any) -> list[str]:
        result = {"node": "web2", "plan": [LINE], "moved": [], "left": [], "problems": []}
        return nodetext.drained(result | more, PLAIN).splitlines()

    def test_nothing_to_do(self) -> None:
        assert self.shown(plan=[]) == ["web2: nothing that is served stands there"]

    def test_what_would_be_done(self) -> None:
        assert self.shown(left=["blog", "news"]) == [
            "blog: web2 -> web3, with filesystem:www, news",
            "2 would be moved; nothing was done: this was a dry run",
        ]

    def test_what_was_done(self) -> None:
        assert self.shown(moved=[LINE | {"pause": 0.12}]) == [
            "blog: web2 -> web3, with filesystem:www, news  120 ms",
            "web2: 2 moved; nothing is left there",
        ]

    def test_what_was_not(self) -> None:
        why = "stopped at shop: no disk; 2 of 3 have moved, 1 are on web2"
        assert self.shown(moved=[LINE | {"pause": 0.12}], left=["shop"], problems=[why]) == [
            "blog: web2 -> web3, with filesystem:www, news  120 ms",
            why,
        ]
