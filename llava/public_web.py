"""Connections to public addresses alone, for URLs that strangers name: a server reaches what they cannot."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from requests import Session
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from llava.errors import UserError

# Addresses of IPv6 behind which stands one of IPv4, by the network that marks them: NAT64 and IPv4 itself.
_CARRIERS = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::ffff:0:0/96", "::/96")))


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the open internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.sixtofour or (ip.teredo and ip.teredo[1])
        if any(ip in network for network in _CARRIERS):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def connect(host: str, port: int, timeout: Any) -> socket.socket:
    """Return a connection to a public address of a host; what is checked is what is connected to.

    Raises:
        UserError: If the host has no such address.
        OSError: If it cannot be reached.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    public = [place for place in found if is_public(str(place[4][0]))]
    if not public:
        raise UserError(f"{host[:100]} is not a host with a public address; no other is connected to")
    error: OSError = OSError("no address")
    for _, _, _, _, place in public:
        try:
            # The address itself, not the name, which could mean another one by now.
            return socket.create_connection((str(place[0]), port), timeout)
        except OSError as failure:
            error = failure
    raise error


def use_public_addresses_only(session: Session) -> None:
    """Have a session connect to nothing else, and go through no proxy, which would look names up itself."""
    session.trust_env = False
    session.mount("http://", _PublicAdapter())
    session.mount("https://", _PublicAdapter())


class _Public:
    """Replaces how a connection of urllib3 is made."""

    host: str
    port: int
    timeout: Any

    def _new_conn(self) -> socket.socket:
        return connect(self.host, self.port, self.timeout)


class _PublicConnection(_Public, HTTPConnection):
    pass


class _PublicTlsConnection(_Public, HTTPSConnection):
    pass


class _PublicPool(HTTPConnectionPool):
    ConnectionCls = _PublicConnection


class _PublicTlsPool(HTTPSConnectionPool):
    ConnectionCls = _PublicTlsConnection


class _PublicAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **settings: Any) -> None:
        super().init_poolmanager(*args, **settings)
        self.poolmanager.pool_classes_by_scheme = {"http": _PublicPool, "https": _PublicTlsPool}
