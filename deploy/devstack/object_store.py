"""The local S3 server, as its clients reach it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta

from obstore.store import S3Store

_REGION = "us-east-1"
"""SeaweedFS has no regions; clients must name one to sign their requests."""


def client_environment(url: str, access_key: str, secret_key: str) -> dict[str, str]:
    """Return the variables by which any S3 client finds the server. tansu reads the older AWS_ENDPOINT."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ENDPOINT": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_REGION": _REGION,
    }


def open_bucket(bucket: str, environment: Mapping[str, str] = os.environ, timeout_seconds: float = 30.0) -> S3Store:
    """Return a bucket of the server that `environment` names, which makes it at the first write.

    Its errors are obstore's BaseError, of a missing object FileNotFoundError.
    """
    return S3Store(
        bucket,
        endpoint=environment["AWS_ENDPOINT_URL"],
        access_key_id=environment["AWS_ACCESS_KEY_ID"],
        secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region=environment["AWS_REGION"],
        client_options={"allow_http": True, "timeout": timedelta(seconds=timeout_seconds)},
        retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=timeout_seconds)},
    )
