"""Metrics pages, as Prometheus would read them."""

from __future__ import annotations

from http.client import HTTPConnection

from daemon_stage import HOST
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.threads import deferToThread

Told = dict[str, float]  # by name and labels, without the prefix of all


def _fetch(host: str, port: int, path: str, method: str) -> tuple[int, str]:
    connection = HTTPConnection(host, port, timeout=60)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


async def answer(
    port: int, path: str = "/metrics", method: str = "GET", host: str = HOST
) -> tuple[int, str]:
    """The status and the body."""
    answered: tuple[int, str] = await deferToThread(_fetch, host, port, path, method)
    return answered


async def text_of(port: int, host: str = HOST) -> str:
    """The page."""
    status, text = await answer(port, host=host)
    assert status == 200
    return text


def parsed(text: str) -> Told:
    """What a page says."""
    told: Told = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            key = sample.name + (f"{{{labels}}}" if labels else "")
            assert key not in told
            told[key.removeprefix("awesomeproxy_")] = sample.value
    return told


async def told_at(port: int, host: str = HOST) -> Told:
    """What the page says now."""
    return parsed(await text_of(port, host))
