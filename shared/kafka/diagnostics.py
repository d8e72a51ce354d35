"""Why a client cannot connect to the broker, as an error that names the variable to set.

aiokafka and kafka-python raise "unable to bootstrap" and only log the reason: here one connection is tried by hand to
see it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiokafka.conn import create_conn, get_ip_port_afi
from aiokafka.errors import (
    AuthenticationFailedError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from shared.errors import ConfigurationError, DependencyUnavailable, RatchetError

_SECONDS = 5.0


async def diagnose(options: Mapping[str, Any], error: BaseException) -> RatchetError:
    """Return the error to raise for `error` of a client with these options (shared/kafka/clients.py).

    It is a ConfigurationError where only another setting helps, else a DependencyUnavailable.
    """
    problems: list[RatchetError] = []
    for server in options["bootstrap_servers"]:
        reason = await _try_connection(server, options)
        if reason is None:
            return DependencyUnavailable(f"Kafka at {server}: {error!r}", "Check the broker: ratchet status")
        problems.append(_problem_of(server, reason, options))
    return next((problem for problem in problems if isinstance(problem, ConfigurationError)), problems[-1])


def diagnose_sync(options: Mapping[str, Any], error: BaseException) -> RatchetError:
    """Return the error of `diagnose`, in code that is not asynchronous."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(diagnose(options, error))).result()


async def _try_connection(server: str, options: Mapping[str, Any]) -> BaseException | None:
    host, port, _ = get_ip_port_afi(server)
    rest = {name: value for name, value in options.items() if name != "bootstrap_servers"}
    try:
        connection = await create_conn(host, port, request_timeout_ms=int(_SECONDS * 1_000), **rest)
    except (KafkaError, OSError, TimeoutError, ValueError) as error:
        return error
    connection.close()
    return None


def _problem_of(server: str, error: BaseException, options: Mapping[str, Any]) -> RatchetError:
    security = options["security_protocol"]
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"the certificate of {server} is not trusted: {error.verify_message}",
            "Set RATCHET_KAFKA_CA_FILE to the PEM file of its issuer, and use the broker's name in the certificate",
        )
    if isinstance(error, ssl.SSLError):
        return ConfigurationError(
            f"{server} does not agree on TLS: {error.reason or error}",
            f"Does this port speak {security} (RATCHET_KAFKA_SECURITY)? Does it want RATCHET_KAFKA_CLIENT_CERTIFICATE?",
        )
    if isinstance(error, UnsupportedSaslMechanismError):
        return ConfigurationError(
            f"{server} does not support {options['sasl_mechanism']}: {error}", "Set RATCHET_KAFKA_SASL_MECHANISM"
        )
    if isinstance(error, AuthenticationFailedError | SaslAuthenticationFailed):
        return ConfigurationError(
            f"{server} refuses the user {options['sasl_plain_username']!r}: {error}",
            "Set RATCHET_KAFKA_USERNAME and RATCHET_KAFKA_PASSWORD",
        )
    return DependencyUnavailable(f"no Kafka broker answers at {server}: {error!r}", _questions(security))


def _questions(security: str) -> str:
    if security == "PLAINTEXT":
        return "Start one: ratchet up --only kafka. Or does this port want RATCHET_KAFKA_SECURITY?"
    return (
        f"Is it up, does its port speak {security} (RATCHET_KAFKA_SECURITY), and does it ask for "
        "RATCHET_KAFKA_CLIENT_CERTIFICATE?"
    )
