"""Tells ``twistd`` and ``twist`` that there is an ``awesomeproxy`` service."""

from twisted.application.service import ServiceMaker

awesomeproxy = ServiceMaker(  # type: ignore[no-untyped-call]
    "AwesomeProxy",
    "awesomeproxy.tap",
    "A reverse proxy that lets sites move between servers without a failed request.",
    "awesomeproxy",
)
