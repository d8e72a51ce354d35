"""Entry point of one of several workers of a gateway, which `processes/supervisor.py` starts."""

from __future__ import annotations

import logging
import sys

from services.gateway.main import build_worker, serve
from services.gateway.settings import GatewaySettings


def main() -> None:
    """Entry point: `python -m services.gateway.worker NUMBER PARENT`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    number, parent = int(sys.argv[1]), int(sys.argv[2])
    serve(build_worker(GatewaySettings.load(), number, parent))


if __name__ == "__main__":
    main()
