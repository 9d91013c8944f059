"""The tables of one module: what they may be called, which are kept at hand, which may share a batch.

The same wherever the tables lie, so that a module which works on one worker with one range works on all with many.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from enclave_os.errors import UsageError
from enclave_os.modules.api import Table
from enclave_os.workers.store_calls import TableName

TABLE_NAME_SIZE_MAX: Final = 128
APP_SIZE_MAX: Final = 255
TABLES_KEPT_MAX: Final = 1024  # of one module: their keys need not be derived again


class NamedTable(Table, Protocol):
    """A table that knows what it was asked for by."""

    @property
    def name(self) -> TableName: ...


_T = TypeVar("_T", bound=NamedTable)


class ModuleTables(Generic[_T]):
    """Event loop's thread only. Args: make: a table; called with a name that was checked."""

    def __init__(self, make: Callable[[TableName], _T]) -> None:
        self._make = make
        self._tables: OrderedDict[tuple[str, str, bytes | None], _T] = OrderedDict()
        self._alone: OrderedDict[tuple[str, str], bool] = OrderedDict()

    def of(self, name: str, app: str, brought_key: bytes | None, alone: bool) -> _T:
        """The table. Raises: UsageError: no table has that name, or it was asked for the other way before."""
        key = (app, name, brought_key)
        table = self._tables.get(key)
        if table is not None and table.name.alone == alone:
            self._tables.move_to_end(key)
            return table
        check_table_name(name, app)
        if self._alone.setdefault((app, name), alone) != alone:
            raise UsageError(f"the table {_shown(app, name)} was asked for both alone and not: it is one of them")
        table = self._tables[key] = self._make(TableName(app, name, brought_key, alone))
        for kept in (self._tables, self._alone):
            if len(kept) > TABLES_KEPT_MAX:
                kept.popitem(last=False)
        return table


def check_table_name(name: str, app: str) -> None:
    """Raises: UsageError: no table has that name, or no application that."""
    try:
        sizes = len(name.encode()), len(app.encode())
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise UsageError("a table's and an application's name are UTF-8") from error
    if not 0 < sizes[0] <= TABLE_NAME_SIZE_MAX or sizes[1] > APP_SIZE_MAX:
        raise UsageError(
            f"a table's name has 1 to {TABLE_NAME_SIZE_MAX} bytes, an application's at most {APP_SIZE_MAX}"
        )
    if "\0" in name + app:
        raise UsageError("names of applications and tables have no NUL")


def check_batch(names: Sequence[TableName]) -> None:
    """Args: names: the tables of a batch. Raises: UsageError: with more ranges they might lie in two."""
    if len(names) < 2:
        return
    first = names[0]
    for name in names:
        if name is first or (name.app, name.name, name.alone) == (first.app, first.name, first.alone):
            continue
        if name.app != first.app:
            why = "are of two applications"
        elif name.alone or first.alone:
            why = "share no batch, since one of them was asked for alone"
        else:
            continue
        raise UsageError(
            f"the tables {_shown(first.app, first.name)} and {_shown(name.app, name.name)} {why}: "
            "write to one after the other"
        )


def _shown(app: str, name: str) -> str:
    return repr(f"{app}/{name}" if app else name)
