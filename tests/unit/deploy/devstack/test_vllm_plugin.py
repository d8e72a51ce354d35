"""The vLLM plugin: grouped LoRA equals LoRA row by row, rows of the base model are unchanged, to wait is to sleep."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from deploy.devstack.parts.vllm import PLUGIN_FOLDER  # noqa: E402  # after the skip


@pytest.fixture(scope="module")
def plugin() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ratchet_cpu", PLUGIN_FOLDER / "ratchet_cpu.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Wrapper:
    """Replaces vLLM's PunicaWrapperCPU: it stores the slot of every row."""

    def update_metadata(self, indices: Any) -> None:
        self.token_lora_indices = self.sampler_indices = indices


@pytest.mark.parametrize("slots", [[0, 0, 0], [1, 1, 1], [-1, -1, -1], [-1, 0, 1], [1, -1, 1]])
def test_each_row_gets_its_own_adapter_and_base_rows_none(plugin: ModuleType, slots: list[int]) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(3, 8), torch.randn(3, 10)
    a = tuple(torch.randn(2, 1, 4, 8) for _ in range(2))
    b = (torch.randn(2, 1, 6, 4), torch.randn(2, 1, 4, 4))
    expected = y.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected[row] += torch.cat([x[row] @ a[i][slot, 0].T @ b[i][slot, 0].T for i in range(2)]) * 0.5
    wrapper = plugin.fast_wrapper(Wrapper)()
    wrapper.update_metadata(torch.tensor(slots))
    wrapper.add_lora_linear(y, x, a, b, 0.5, (6, 4))
    torch.testing.assert_close(y, expected)


def test_logits_of_mixed_rows_get_their_own_adapter(plugin: ModuleType) -> None:
    torch.manual_seed(2)
    x, y, a, b = torch.randn(2, 8), torch.zeros(2, 5), torch.randn(2, 1, 4, 8), torch.randn(2, 1, 5, 4)
    wrapper = plugin.fast_wrapper(Wrapper)()
    wrapper.update_metadata(torch.tensor([-1, 1]))
    wrapper.add_lora_logits(y, x, a, b, 1.0)
    torch.testing.assert_close(y[0], torch.zeros(5))
    torch.testing.assert_close(y[1], x[1] @ a[1, 0].T @ b[1, 0].T)


def test_registering_without_vllm_only_logs_warnings(plugin: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    plugin.register()  # vLLM is not installed in this environment.
    assert ["LoRA stays slow" in caplog.messages[0], "may spin" in caplog.messages[1]] == [True, True]


@pytest.mark.parametrize("has_it", [True, False])
def test_the_loop_that_waits_for_a_message_sleeps(
    plugin: ModuleType, has_it: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue = ModuleType("shm_broadcast")
    if has_it:
        queue.sched_yield = lambda: None  # type: ignore[attr-defined]
    communicators = ModuleType("device_communicators")
    communicators.shm_broadcast = queue  # type: ignore[attr-defined]
    modules = {"vllm": ModuleType("vllm"), "vllm.distributed": ModuleType("distributed")}
    modules |= {"vllm.distributed.device_communicators": communicators}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    slept: list[float] = []
    monkeypatch.setattr(plugin.time, "sleep", slept.append)
    for _ in range(2):  # vLLM registers plugins more than once.
        plugin.register()
    if has_it:
        queue.sched_yield()
    assert slept == ([plugin.WAIT_SECONDS] if has_it else [])
    assert any("may spin" in message for message in caplog.messages) is not has_it
