"""The ``[cluster]`` table of the configuration file: the Redis that the nodes share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awesomeproxy import addresses
from awesomeproxy.addresses import RedisServer
from awesomeproxy.consistency import check_cluster
from awesomeproxy.model import Cluster
from awesomeproxy.quantities import choice, count, duration
from awesomeproxy.shapes import Several, Shape, Spot, Structure

_PORT = 6379  # of a Redis ...
_SENTINEL_PORT = 26379  # ... and of a Sentinel, as they come
_CALLED = {"name": "verify_name"}  # of the keys in tls; the others are as in the model


class _Servers(Structure[tuple[RedisServer, ...]]):
    """One address, or the list of several that differ in host and port only."""

    _several = Several(
        addresses.redis_server, 'a list of Sentinels, as in ["redis://10.0.0.5:26379"]'
    )

    def read(self, value: object, spot: Spot) -> tuple[RedisServer, ...]:
        if not isinstance(value, (list, tuple)):
            return (addresses.redis_server(value),)
        servers = self._several.read(value, spot)
        if len({(server.tls, server.db) for server in servers}) > 1:
            spot.wrong(
                "has addresses that differ in more than host and port; write all with"
                ' "redis://" or all with "rediss://", and with the same database'
            )
        return servers


def _cluster(
    redis: tuple[RedisServer, ...],
    tls: Mapping[str, str] | None = None,
    master: str = "",
    replicas: int | None = None,
    **others: Any,
) -> Cluster:
    usual = _SENTINEL_PORT if master else _PORT
    fields: dict[str, Any] = {_CALLED.get(key, key): value for key, value in (tls or {}).items()}
    return Cluster(
        addresses=tuple((server.host, server.port or usual) for server in redis),
        tls=redis[0].tls if redis else False,
        db=redis[0].db if redis else 0,
        master=master,
        replicas=(1 if master else 0) if replicas is None else replicas,
        **fields,
        **others,
    )


CLUSTER = Shape(
    _cluster,
    {
        "redis": _Servers(),
        "master": addresses.visible,
        "user": addresses.visible,
        "password_file": addresses.some_path,
        "sentinel_user": addresses.visible,
        "sentinel_password_file": addresses.some_path,
        "tls": Shape(
            dict[str, str],
            {
                "ca_file": addresses.some_path,
                "name": addresses.server_name,
                "certificate": addresses.some_path,
                "key": addresses.some_path,
            },
        ),
        "prefix": addresses.name,
        "lease": duration(),
        "on_registry_loss": choice("serve", "hold"),
        "replicas": count(zero=True),
        "fence_command": addresses.command,
        "fence_time": duration(),
    },
    needed={"redis": ()},
    check=check_cluster,
)
