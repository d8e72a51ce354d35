"""Addresses of servers: how they are shown, and whether only this machine reaches them."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit


def without_credentials(url: str) -> str:
    """Return an address as logs, errors and reports may show it: without user, password, query and fragment.

    Of an address that is not valid, only the scheme is shown: a password's `/`, `?` or `#` may have cut it anywhere.
    """
    try:
        scheme, netloc, path, query, fragment = urlsplit(url)
    except ValueError:
        return "…"
    if "@" in path + query + fragment:
        return f"{scheme}://…" if netloc else "…"
    return url if not netloc else f"{scheme}://{netloc.rpartition('@')[2]}{path}"


def host_name(host: str) -> str:
    """Return the name or the IP address, in small letters, of a `Host` header: without port; empty if it has none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_ip_address(host: str) -> bool:
    """Return True for an IP address, without brackets."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def client_host(host: str) -> str:
    """Return where clients on this machine reach a server that listens at `host`: a wildcard is not an address."""
    match host:
        case "" | "0.0.0.0":  # noqa: S104  # Nothing listens here.
            return "127.0.0.1"
        case "::":
            return "localhost"  # Without IPv4 where asyncio listens: 127.0.0.1 may not answer.
    return host


def client_address(host: str, port: int) -> str:
    """Return host:port, as in a URL, where clients on this machine reach a server that listens at `host`."""
    reached = client_host(host)
    return f"[{reached}]:{port}" if ":" in reached else f"{reached}:{port}"


def is_loopback(host: str) -> bool:
    """Return True if only this machine reaches the address. A name other than localhost may be anywhere: False."""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
