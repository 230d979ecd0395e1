"""When the plugin hooks into vLLM and when it stands aside; with a stand-in for vLLM, which is not installed here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest

from quantkit import vllm_plugin

HOOKS = ("routing", "fp8", "integers")


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hooks that were called, in order."""
    called: list[str] = []
    for name in HOOKS:
        hook = SimpleNamespace(hook=lambda name=name: called.append(name))
        monkeypatch.setattr(vllm_plugin, name, hook, raising=False)
    monkeypatch.setattr(vllm_plugin, "_registered", False)
    return called


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a vLLM of that version in place, on that device."""

    def install(version: str, device: str) -> None:
        vllm, platforms = ModuleType("vllm"), ModuleType("vllm.platforms")
        vllm.__version__ = version
        platforms.current_platform = SimpleNamespace(is_cpu=lambda: device == "cpu", device_name=device)
        monkeypatch.setitem(sys.modules, "vllm", vllm)
        monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)

    return install


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.2.dev7+g1234567.cpu"])
def test_known_version_on_a_cpu(
    version: str, hooked: list[str], pretend: Callable[[str, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    pretend(version, "cpu")
    with caplog.at_level(logging.INFO):
        vllm_plugin.register()
    assert sorted(hooked) == sorted(HOOKS)
    assert caplog.messages == ["quantkit's CPU plugin is on: quantized weights are dequantized while loading"]


def test_second_call_does_nothing(
    hooked: list[str], pretend: Callable[[str, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    pretend("0.32.0", "cpu")
    with caplog.at_level(logging.INFO):
        vllm_plugin.register()
        vllm_plugin.register()
    assert len(hooked) == len(HOOKS)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("version", ["0.31.4", "0.33.0", "0.320.0", "1.32.0", "dev"])
def test_stands_aside_on_other_versions(
    version: str, hooked: list[str], pretend: Callable[[str, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    pretend(version, "cpu")
    with caplog.at_level(logging.INFO):
        vllm_plugin.register()
    assert hooked == []
    assert caplog.messages == [f"quantkit's CPU plugin is off: it knows vLLM 0.32.x, this is {version}"]
    assert caplog.records[0].levelno == logging.WARNING


def test_stands_aside_on_cuda(
    hooked: list[str], pretend: Callable[[str, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    pretend("0.32.0", "cuda")
    with caplog.at_level(logging.INFO):
        vllm_plugin.register()
    assert hooked == []
    assert caplog.messages == ["quantkit's CPU plugin is off: vLLM runs on cuda"]


def test_importing_it_needs_no_vllm() -> None:
    assert "vllm" not in sys.modules
    assert not {name for name in vars(vllm_plugin) if name in HOOKS}
