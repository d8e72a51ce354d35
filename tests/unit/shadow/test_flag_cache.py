"""Whether shadow's flag is off, which the SDK does not say: what was not sampled then is left for later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from UnleashClient.constants import FEATURES_URL

from services.shadow import clients
from services.shadow.clients import _FlagCache


def features(**on: bool) -> str:
    return json.dumps({"version": 2, "features": [{"name": name, "enabled": on[name]} for name in on]})


def test_a_flag_is_off_at_once_and_on_a_moment_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(clients.time, "monotonic", lambda: now)
    cache = _FlagCache("test", tmp_path)
    cache.set(FEATURES_URL, features())
    assert cache.is_off("shadow") and not cache.is_loaded
    cache.set(FEATURES_URL, features(shadow=True, other=False))
    assert cache.is_loaded
    assert cache.is_off("shadow")  # The SDK may not have taken it yet.
    now = 101.0
    assert not cache.is_off("shadow")
    assert cache.is_off("other")
    cache.set("etag", "1")
    cache.set(FEATURES_URL, features(shadow=True, other=True))
    assert not cache.is_off("shadow")
    cache.set(FEATURES_URL, features(shadow=False, other=True))
    assert cache.is_off("shadow")
    cache.set(FEATURES_URL, features())
    assert not cache.is_loaded


def test_a_restart_while_unleash_is_away_knows_the_flags_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "_TURNING_ON_SECONDS", 0.0)
    _FlagCache("test", tmp_path).set(FEATURES_URL, features(shadow=True))
    restarted = _FlagCache("test", tmp_path)
    assert restarted.is_loaded and not restarted.is_off("shadow")
