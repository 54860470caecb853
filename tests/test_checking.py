"""What ``awesomeproxy check`` says of files that are fine in themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from tls_stage import Authority

from awesomeproxy import checking, config
from awesomeproxy.control.cli import main

SITE = """
[sites.blog]
hosts = ["blog.example"]
backend = "old"
[sites.blog.backends.old]
servers = ["https://127.0.0.1:1"]
"""
LISTEN = '[[listen]]\nendpoint = "tcp:8080"\n'
ACME = '[acme]\ndirectory = "https://ca.example/dir"\nterms_agreed = true\n'


def doubts(text: str, tmp_path: Path) -> list[str]:
    """Those about a configuration."""
    node = "" if "[node]" in text else f'[node]\nstate_dir = "{tmp_path}/state"\n'
    return list(checking.doubts(config.parse(node + text, "a.toml")))


def test_what_is_in_order_is_not_doubted(tmp_path: Path) -> None:
    Authority(tmp_path / "authority").issue("blog.example", path=tmp_path / "tls" / "blog.pem")
    text = f'[tls]\ncertificates = ["{tmp_path}/tls"]\ndefault = "blog.example"\n{LISTEN}tls = true'
    assert doubts(text + SITE, tmp_path) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'[tls]\ncertificates = ["/nowhere"]\n{LISTEN}', ["tls.certificates: /nowhere: does not"]),
        (
            f'[tls]\ncertificates = ["EMPTY"]\ndefault = "a.example"\n{LISTEN}',
            [
                "tls.certificates: there is no certificate in",
                "tls.default: there is no",
            ],
        ),
        (f"{LISTEN}{SITE}tls.verify = false", ["sites.blog.backends.old.tls.verify: is false"]),
        (
            f'{LISTEN}{SITE}tls.ca_file = "/no.pem"',
            ["sites.blog.backends.old.tls: /no.pem: "],
        ),
        (
            f'{LISTEN}{SITE}tls.certificate = "/no.pem"',
            ["sites.blog.backends.old.tls: /no.pem: cannot be read"],
        ),
        (
            f'[node]\naccess_log = "/nowhere/a.log"\n{LISTEN}',
            ["node.access_log: /nowhere/a.log"],
        ),
        (f"{ACME}{LISTEN}", ["acme: no site has certificates issued"]),
        (
            ACME + 'ca_file = "/no.pem"\n' + LISTEN + SITE + "[sites.blog.tls]\nacme = true",
            ["acme.ca_file: /no.pem cannot be read"],
        ),
        (
            ACME + LISTEN + "tls = true\n" + SITE + "[sites.blog.tls]\nacme = true",
            ["acme: the authority asks for its proof without TLS"],
        ),
        (
            '[nodes.other]\nssh = "other"\nconfig = "/no.conf"\n' + LISTEN,
            ["nodes.other.config: /no.conf cannot be read"],
        ),
        (
            f'{LISTEN}[cluster]\nredis = "rediss://r"\nmaster = "m"\n'
            'password_file = "/no"\nsentinel_password_file = "/etc/passwd"\ntls.ca_file = "/ca"',
            [
                "cluster.password_file: /no cannot be read",
                "cluster.sentinel_password_file: /etc/passwd can be read by others",
                "cluster.tls.ca_file: /ca cannot be read",
                "cluster.redis: is one Sentinel",
            ],
        ),
    ],
)
def test_what_is_doubtful_is_named(text: str, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = doubts(text.replace("EMPTY", str(tmp_path / "empty")), tmp_path)
    assert len(found) == len(said), found
    for doubt, begin in zip(found, said, strict=True):
        assert doubt.startswith(begin)
        assert "; " in doubt, "it does not say what to do"


def test_doubts_are_told_with_the_file_and_are_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f"{LISTEN}{SITE}tls.verify = false\n")
    assert main(["check", str(path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{path}: fine, with a warning: 1 site, 1 listener"
    assert second.startswith(f"{path}: sites.blog.backends.old.tls.verify: is false")
