"""The ids that travel with a request to the model server and back: `x-request-id` and the W3C trace context.

Only values that cannot end a header line, and are short, are taken from a client; anything else is as if not sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from shared.tracing import PARENT, TraceHeaders

REQUEST_ID = b"x-request-id"
_SAFE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._~:/+=@-]{0,127}")


def sent_request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the client's own id of a request; None if it sent none that may be passed on."""
    for name, value in headers:
        if name == REQUEST_ID:
            return value if _SAFE_ID.fullmatch(value) else None
    return None


def answer_headers(request_id: bytes, trace: TraceHeaders) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer that say which request it is of. `trace`: as of `upstream_lines`."""
    shown = [(REQUEST_ID, request_id)]
    for name, value in trace:
        if name == PARENT:
            shown.append((name.encode(), value))
    return shown


def upstream_lines(request_id: bytes, trace: TraceHeaders) -> bytes:
    """Return the header lines, each with its end. `trace` has been checked by `shared.tracing.trace_headers`."""
    if not trace:
        return b"%b: %b\r\n" % (REQUEST_ID, request_id)
    traced = b"".join([b"%b: %b\r\n" % (name.encode(), value) for name, value in trace])
    return b"%b: %b\r\n%b" % (REQUEST_ID, request_id, traced)
