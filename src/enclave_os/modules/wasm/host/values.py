"""`privasys:enclave-os/kv`: typed access to the app's sealed table, with versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from enclave_os.errors import ClockUntrusted, HostRefused, StoreBusy, UsageError, VersionConflict
from enclave_os.modules.api import Item
from enclave_os.modules.wasm.host.context import CallContext, err, ok
from enclave_os.wasm import Interface

LIST_MAX: Final = 1000


def _answers(work: Callable[..., Any]) -> Callable[..., tuple[str, Any]]:
    """Weather and mistakes are errors that an app can act on; tampering is not: it ends the call."""

    def answered(context: CallContext, *values: Any) -> tuple[str, Any]:
        try:
            return ok(work(context, *values))
        except VersionConflict:
            return err(("conflict", None))
        except (StoreBusy, HostRefused, ClockUntrusted):
            return err(("unavailable", None))
        except UsageError as error:
            return err(("invalid", str(error)))

    return answered


def _entry(item: Item) -> dict[str, Any]:
    return {"key": item.name, "value": item.value, "version": item.version}


def _get(context: CallContext, key: bytes) -> dict[str, Any] | None:
    item = context.wait(context.means.values.get(key))
    return None if item is None else _entry(item)


def _put(context: CallContext, key: bytes, value: bytes, expected: int | None) -> int:
    version: int = context.wait(context.means.values.put(key, value, expected), whole=True)
    return version


def _delete(context: CallContext, key: bytes, expected: int | None) -> None:
    context.wait(context.means.values.delete(key, expected), whole=True)


def _list(context: CallContext, start: bytes, end: bytes, limit: int) -> list[dict[str, Any]]:
    return [_entry(item) for item in context.wait(context.means.values.scan(start, end, min(limit, LIST_MAX)))]


INTERFACES: Final = (
    Interface(
        "privasys:enclave-os/kv",
        ("0.1.0",),
        {"get": _answers(_get), "put": _answers(_put), "delete": _answers(_delete), "scan": _answers(_list)},
        {},
    ),
)
