"""The two ends of an exchange, whatever version of HTTP is spoken there.

A *client* is whoever asked: a connection that speaks HTTP/1.1, or one stream of a
connection that speaks HTTP/2.  A *carrier* takes the request to a server and brings the
response back: again a connection, or a stream.  What lies between -- gate, choice of a
server, retries, what is counted -- is the same for all and knows none of the versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from awesomeproxy.proxy.arrival import Arrival
    from awesomeproxy.proxy.exchange import Exchange
    from awesomeproxy.proxy.heads import Origin
    from awesomeproxy.proxy.requests import Request
    from awesomeproxy.proxy.responses import Response
    from awesomeproxy.proxy.servers import LiveServer
    from awesomeproxy.proxy.tunnel import Tunnel


class IClient(IPushProducer):
    """Whoever asked.  What it produces is the body of its request."""

    address: str = Attribute("Its address, without a port.")
    arrival: Arrival = Attribute("How it has come.")
    origin: Origin = Attribute("The fields that say where its requests come from.")
    transport: Any = Attribute("What a tunnel writes to, and reads from.")
    kept: int = Attribute("Bytes of memory that what came behind the request takes.")
    unsent: int = Attribute("Bytes of the response that it has not taken yet.")
    deadline: float = Attribute("When it is too late for what it does, or is waited for.")

    def has_left() -> bool:
        """Whether it has gone, though nothing of it was read that says so."""

    def hold_body() -> None:
        """The request cannot be sent yet: let the rest of its body wait where it is."""

    def take_body() -> None:
        """It can be sent: let the rest come."""

    def watch_leaving() -> None:
        """The request is held: see whether the client stays."""

    def interim(response: Response) -> None:
        """Pass a 1xx response on."""

    def relay(exchange: Exchange, response: Response, head: bool) -> None:
        """Pass on what has come of a response and was not passed on yet.

        :param head: whether its head is to come first.
        """

    def stream_from(source: IPushProducer, now: float) -> None:
        """The response is long: stop ``source`` while it cannot be passed on."""

    def stream_ended() -> None:
        """No more will come from that source."""

    def switch(exchange: Exchange, response: Response) -> bytes | None:
        """The protocol is switched; return what is to be written before its first bytes.

        None: the server has not understood what it was asked.
        """

    def begin_tunnel(tunnel: Tunnel) -> bytes:
        """From here on bytes go to ``tunnel``; return those that have come already."""

    def end_tunnel() -> None:
        """The other side is closed: so is this one, once everything is sent."""

    def finished(exchange: Exchange, now: float) -> None:
        """The response has been passed on, to its end."""

    def answer(status: int, reason: str, request: Request) -> int:
        """Answer the present request ourselves; return with how many bytes."""

    def abort() -> None:
        """End it in a way that cannot be taken for a proper end."""


class IVisitor(Interface):
    """A connection that a client has opened, whatever it is used for."""

    transport: Any = Attribute("What it writes to.")
    deadline: float = Attribute("When it is too late for what it does, or is waited for.")

    def expired(now: float) -> None:
        """The deadline has passed."""

    def idle_close() -> None:
        """The proxy stops: close when nothing is being answered, nor about to be."""

    def abort() -> None:
        """Close in a way that cannot be taken for a proper end."""


class ICarrier(IPushProducer):
    """What carries an exchange to a server and back.  What it produces is the response."""

    server: LiveServer = Attribute("The server.")
    exchange: Exchange | None = Attribute("What it carries.")
    response: Response = Attribute("What has come of the response.")
    interims: list[Response] = Attribute("1xx responses that have not been passed on.")
    transport: Any = Attribute("What a tunnel writes to, and reads from.")
    heard: bool = Attribute("Whether anything has come for the present exchange.")
    ready: bool = Attribute("Whether it is connected.")
    reused: bool = Attribute("Whether it has carried another exchange before.")
    unsent: int = Attribute("Bytes that the server has not taken yet.")
    taken_seen: int | None = Attribute("How much it had taken when it was last late.")
    deadline: float = Attribute("When the server is late.")

    def connect(timeout: float) -> None:
        """Get ready; the exchange is told ``connected`` or ``not_connected``.

        :param timeout: seconds.
        """

    def send(request: Request, origin: Origin, parts: list[bytes], last: bool) -> None:
        """Send the head of ``request``, and ``parts`` of its body.

        :param last: these are all there is of it.
        """

    def send_body(request: Request, parts: list[bytes], last: bool) -> None:
        """Send more of the body."""

    def pull_from(client: IClient) -> None:
        """More of the body will come from ``client``: stop it while it cannot be sent."""

    def pulled() -> None:
        """No more of the body will come."""

    def cancel() -> None:
        """Nobody wants the response any more: have the server stop, if it can be told.

        The exchange is told ``cancelled`` once the server knows.
        """

    def ended() -> bool:
        """The server has closed its side; return whether its response is complete."""

    def idle(now: float) -> None:
        """The exchange is over and what carried it can carry another."""

    def close() -> None:
        """It will carry no other: part with it once all is sent."""

    def abort() -> None:
        """Part with it now; what was not sent is dropped."""


class IServerLink(Interface):
    """A connection to a server, of whatever version: what a drain waits for."""

    transport: Any = Attribute("What it writes to.")

    def carriers() -> list[ICarrier]:
        """Those that carry an exchange at present."""

    def abort() -> None:
        """Close it now."""
