"""The local S3 server, as its clients reach it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import FileSystem, PyFileSystem, S3FileSystem

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


def open_bucket(bucket: str, environment: Mapping[str, str] = os.environ, timeout_seconds: float = 30.0) -> FileSystem:
    """Return a bucket of the server that `environment` names. Its errors are OSError.

    Unlike the client of `open_store`, it leaves no empty object in the place of the folder that it deleted from.
    """
    options = {name.lower(): value for name, value in environment.items() if name.startswith("AWS_")}
    limits = {"timeout": f"{timeout_seconds}s", "max_retries": "2"}
    return PyFileSystem(DeltaStorageHandler(f"s3://{bucket}", options=options | limits))


def open_store(environment: Mapping[str, str] = os.environ, timeout_seconds: float = 30.0) -> S3FileSystem:
    """Return a client of the server that `environment` names with `client_environment`'s variables."""
    url = urlsplit(environment["AWS_ENDPOINT_URL"])
    return S3FileSystem(
        access_key=environment["AWS_ACCESS_KEY_ID"],
        secret_key=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=url.netloc,
        scheme=url.scheme,
        region=environment["AWS_REGION"],
        request_timeout=timeout_seconds,
        connect_timeout=min(timeout_seconds, 5.0),
        allow_bucket_creation=True,
    )
