"""An authority that issues nothing, and says whatever a test wants it to say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from stage_waiting import HOST, reactor, until
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from twisted.web.server import Site as WebSite

from awesomeproxy.acme.keeper import Keeper
from awesomeproxy.model import Acme, Site

Say = Callable[[Any], Any]
RESOURCES = ("newNonce", "newAccount", "newOrder", "revokeCert", "keyChange")


class ScriptedAuthority(Resource):
    """Knows everybody, and refuses every order unless told otherwise."""

    isLeaf = True

    def __init__(self, path: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path = path
        self.clock = Clock()
        self.asked: list[str] = []
        self.keepers: list[Keeper] = []
        self._says: dict[str, Say] = {}
        self._hanging: list[Any] = []
        self.bad_nonces = 0  # so many requests are refused for their nonce
        self._nonces = 0
        self.say("newNonce", 200, b"")
        self.say("newAccount", 201, b'{"status": "valid"}', {"Location": "http://a/account/1"})
        self.refuse("newOrder", 403, "unauthorized", "not you")

    def open(self) -> None:
        """Listen."""
        site = WebSite(self)  # type: ignore[no-untyped-call]
        site.noisy = False
        self._port = reactor.listenTCP(0, site, interface=HOST)
        self.url = f"http://{HOST}:{self._port.getHost().port}/directory"
        resources = {name: self.url.replace("directory", name) for name in RESOURCES}
        self.say("directory", 200, json.dumps(resources).encode())

    @property
    def orders(self) -> int:
        """How often it was asked for a certificate."""
        return self.asked.count("newOrder")

    # What it says

    def say(
        self, what: str, status: int, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer so from now on."""

        def answer(request: Any) -> bytes:
            request.setResponseCode(status)
            for name, value in (headers or {}).items():
                request.setHeader(name, value)
            return body

        self._says[what] = answer

    def refuse(
        self,
        what: str,
        status: int,
        code: str = "",
        detail: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer with a problem, or without a word, from now on."""
        problem = {"type": f"urn:ietf:params:acme:error:{code}", "detail": detail}
        body = json.dumps(problem).encode() if code else b""
        self.say(
            what, status, body, {"Content-Type": "application/problem+json", **(headers or {})}
        )

    def hang(self, what: str) -> None:
        """Answer nothing from now on."""

        def answer(request: Any) -> int:
            self._hanging.append(request)
            request.notifyFinish().addErrback(lambda _: None)
            return NOT_DONE_YET

        self._says[what] = answer

    def render(self, request: Any) -> Any:
        what = request.path.decode().strip("/")
        self.asked.append(what)
        self._nonces += 1
        request.setHeader("Replay-Nonce", f"nonce{self._nonces:03}")
        request.setHeader("Content-Type", "application/json")
        request.setHeader("Connection", "close")
        if request.method == b"POST" and self.bad_nonces:
            self.bad_nonces -= 1
            request.setResponseCode(400)
            return b'{"type": "urn:ietf:params:acme:error:badNonce", "detail": "stale"}'
        return self._says[what](request)

    # Who asks

    def acme(self, **more: Any) -> Acme:
        """The settings to reach it."""
        return Acme(self.url, terms_agreed=True, **more)

    def keeper(self, *sites: Site, acme: Acme | None = None) -> Keeper:
        """A keeper that runs."""
        keeper = Keeper(
            reactor, acme or self.acme(), self.path, {}, clock=self.clock, random=lambda: 0.0
        )
        for site in sites:
            keeper.define(site)
        keeper.start()
        self.keepers.append(keeper)
        return keeper

    def idle(self, keeper: Keeper) -> bool:
        """Whether no order is under way."""
        return "ordering none" in repr(keeper)

    async def close(self) -> None:
        """Leave nothing behind."""
        for keeper in self.keepers:
            keeper.stop()
        for request in self._hanging:
            if request.channel is not None:
                request.loseConnection()
        threads = [keeper.threads for keeper in self.keepers]
        await until(lambda: not any(each.running for each in threads), "the last answers")
        await maybeDeferred(self._port.stopListening)


async def a_scripted_authority(tmp_path: Path) -> AsyncIterator[ScriptedAuthority]:
    """One that listens."""
    authority = ScriptedAuthority(tmp_path / "state" / "acme")
    authority.open()
    yield authority
    await authority.close()
