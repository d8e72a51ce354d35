"""What an operator reads where a setting cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.gateway.settings import GatewaySettings
from shared.errors import ConfigurationError


def test_settings_that_cannot_be_used_are_named_by_their_variables_without_their_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_KAFKA_SECURITY", "TLS")
    (tmp_path / "stack.env").write_text("RATCHET_GATEWAY_WORKERS=s3cret\n")
    with pytest.raises(ConfigurationError) as refused:
        GatewaySettings.load(home=tmp_path)
    security, workers = refused.value.reason.splitlines()
    assert security.startswith("RATCHET_KAFKA_SECURITY: ") and "'SASL_SSL'" in security
    assert workers.startswith("RATCHET_GATEWAY_WORKERS: ") and "integer" in workers
    assert str(tmp_path / "stack.env") in refused.value.way_out
    assert "s3cret" not in refused.value.reason
