"""Where an endpoint is: the URL as people type it, made one spelling, and whether it leads off this machine."""

from __future__ import annotations

import ipaddress
import socket

from yarl import URL

_LOCALHOST = {
    **dict.fromkeys(("localhost", "localhost.localdomain", "localhost4", "localhost4.localdomain4"), "localhost"),
    **dict.fromkeys(("ip6-localhost", "ip6-loopback", "localhost6", "localhost6.localdomain6"), "::1"),
}


def checked_url(url: str, allow_http: bool) -> tuple[str, bool]:
    """The API's root in one spelling, without a trailing slash, and whether it is on this machine.

    Example: `http://0.0.0.0:8000` → `http://127.0.0.1:8000/v1`, True. Raises `ValueError`, which names `genrm.urls` and the cure.
    """
    example = "such as http://127.0.0.1:8000/v1"
    try:
        parsed = URL(url)
    except (ValueError, TypeError):
        raise ValueError(f"genrm.urls holds something that is no URL: write one {example}") from None
    # Before any message that quotes the URL.
    if parsed.user is not None or parsed.password is not None:
        raise ValueError("genrm.urls must not hold user:password@: put the token into the environment as SOUNDRL_GENRM_TOKEN")
    if parsed.query_string or parsed.fragment:
        raise ValueError("genrm.urls must not hold a query or a fragment (a key in it would be logged): end it with the path")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"genrm.urls: {url!r} is not an http or https address; write one {example}")
    own = own_host(parsed.host)
    if parsed.scheme == "http":
        if own is None and not allow_http:
            raise ValueError(
                f"genrm.urls: http to {parsed.host} can be read on the way; use https, or set genrm.allow_http (or --allow-http) on "
                "a trusted network"
            )
        # What was looked at is what is connected to: a name that meant this machine a moment ago is not looked up again.
        parsed = parsed if own is None else parsed.with_host(own)
    root = str(parsed).rstrip("/").removesuffix("/chat/completions")
    return root if URL(root).path not in ("", "/") else f"{root}/v1", own is not None


def own_host(host: str) -> str | None:
    """The host to connect to where `host` is this machine, in whatever spelling; None where it is another one, or nobody knows.

    Examples: `127.1`, `2130706433`, `0x7f000001`, `0.0.0.0`, `::ffff:127.0.0.1` → `127.0.0.1`; `::` → `::1`; `LOCALHOST.` → `localhost`; an
    address of an own interface → itself. Of names, those without a dot and our own are looked up, which /etc/hosts or the host's own
    resolver answers; any other is what whoever answers for its domain says, and that may change.
    """
    name = host.lower().rstrip(".")
    if name in _LOCALHOST or name.endswith(".localhost"):  # RFC 6761 §6.3
        return _LOCALHOST.get(name, "localhost")
    looked_up = "." not in name or name == socket.gethostname().lower()
    try:  # numbers in all spellings that the C library takes: parts left out, hexadecimal, octal, one number
        flags = 0 if looked_up else socket.AI_NUMERICHOST
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=flags)}
    except (OSError, UnicodeError):
        return None
    own = [_own(ipaddress.ip_address(text)) for text in sorted(found)]
    return None if None in own else own[0]


def _own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_unspecified:  # "every address of this machine", as servers print it; to connect to it is left to the system
        return "127.0.0.1" if address.version == 4 else "::1"
    if address.is_loopback:
        return str(address)
    with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as route:
        try:
            route.connect((str(address), 9))  # sends nothing: the kernel says from where it would send
            return str(address) if ipaddress.ip_address(route.getsockname()[0]) == address else None
        except OSError:
            return None
