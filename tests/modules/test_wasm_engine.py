"""The one configuration of wasmtime, and the epoch's clock."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import wasmtime

import enclave_os
from enclave_os.modules.wasm.host import INTERFACES
from enclave_os.wasm import Component
from enclave_os.wasm import engine as module
from enclave_os.wasm.engine import SETTINGS, Engine, make_config

PROBE = Path(__file__).parent / "guests" / "probe.wasm"


def test_nothing_rests_on_pages_or_signals() -> None:
    # docs/wasm.md: guard pages do not fault in an enclave without EDMM. These five are the difference between
    # a bounds check and none.
    assert SETTINGS["signals_based_traps"] is False
    assert SETTINGS["memory_reservation"] == 0
    assert SETTINGS["memory_guard_size"] == 0
    assert SETTINGS["memory_reservation_for_growth"] == 1 << 20
    assert SETTINGS["memory_init_cow"] is False
    assert SETTINGS["consume_fuel"] is True
    assert SETTINGS["epoch_interruption"] is True
    assert SETTINGS["wasm_threads"] is False


def test_the_configuration_is_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Spy:
        def __setattr__(self, name: str, value: object) -> None:
            seen[name] = value

    monkeypatch.setattr(module, "Config", Spy)
    make_config()
    assert seen == dict(SETTINGS)


def test_code_of_another_configuration_does_not_load() -> None:
    # What wasmtime does by itself must be ours as well: it compares the settings that change code.
    other = wasmtime.Config()
    other.consume_fuel = True
    compiled = wasmtime.component.Component(wasmtime.Engine(other), "(component)").serialize()
    with pytest.raises(wasmtime.WasmtimeError):
        wasmtime.component.Component.deserialize(Engine().raw, compiled)


def test_the_fingerprint_is_of_version_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Engine().fingerprint
    assert Engine().fingerprint == one
    monkeypatch.setattr(module, "version", lambda name: "50.0.2")
    assert Engine().fingerprint != one


def test_the_epoch_ticks_only_while_something_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ticked = threading.Event()
    monkeypatch.setattr(module, "EPOCH_SECONDS", 0.001)
    engine = Engine()
    monkeypatch.setattr(engine.raw, "increment_epoch", ticked.set, raising=False)
    engine.begin()
    assert ticked.wait(10)
    engine.end()
    engine.close()
    ticked.clear()
    assert not ticked.is_set()


def test_what_the_heap_keeps_is_given_back_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = threading.Event()
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.001)
    engine = Engine()

    class Libc:
        def malloc_trim(self, pad: int) -> int:
            trimmed.set()
            return 1

    monkeypatch.setattr(engine, "_libc", Libc())
    engine.begin()
    engine.end()
    assert trimmed.wait(10)
    engine.close()


def test_nothing_of_wasmtimes_own_wasi_is_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its random numbers, clocks and files are the host's, and a store without them ends the process."""

    def never(*_: object) -> None:
        raise AssertionError("wasmtime's own WASI")

    monkeypatch.setattr(wasmtime.component.Linker, "add_wasip2", never)
    monkeypatch.setattr(wasmtime.Store, "set_wasi", never)
    component = Component.compile(Engine(), PROBE.read_bytes())
    component.link(INTERFACES)
    assert any(name.startswith("wasi:random/") for name in component.imports)
    assert any(name.startswith("wasi:clocks/") for name in component.imports)
    source = Path(enclave_os.__file__).parent
    assert not [path for path in source.rglob("*.py*") if b"add_wasip2(" in path.read_bytes()]
