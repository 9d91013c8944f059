"""The rows of all secrets, or of all keys: one by its path, many by what the caller may see.

A row that is not there costs the store what one costs that is: a decoy is read in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from enclave_os.modules.api import Item, Table, Write
from enclave_os.modules.vault.access import ABSENT, Access, Refused, Who
from enclave_os.modules.vault.policy import Rule
from enclave_os.modules.vault.policy_document import (
    Policy,
    PolicyMistake,
    canonical,
    check_path,
    owned_by,
    read_policy,
    with_issuers,
)
from enclave_os.modules.vault.record import Record, Records

DECOY: Final = b"\0decoy"  # no path


@dataclass(frozen=True, slots=True)
class Row:
    """One secret or key, as the store has it.

    Attributes: version: of the row, which a write expects.
    """

    version: int
    record: Record
    policy: Policy


class Rows:
    """Those of one kind.

    Args: kind: "secret" or "key".
    """

    def __init__(self, access: Access, table: Table, kind: str) -> None:
        self._access = access
        self._table = table
        self._kind = kind
        self._records = Records(kind)

    async def open(self) -> None:
        """Lay out the decoy."""
        if await self._table.get(DECOY) is None:
            await self._table.put(DECOY, Record(owned_by("-", "-")).encode())

    async def find(self, path: str) -> Row | None:
        """The row of a path; None where it is not there."""
        item = await self._table.get(path.encode()) if check_path(path) is None else None
        if item is None:
            await self._table.get(DECOY)
            return None
        return self._row(item)

    async def allowed(self, who: Who, action: str, path: str, granted: Rule | None = None) -> Row:
        """The row of a path with which the caller may do this.

        Args: granted: what holds of this caller beside the section's rules.
        Raises: Refused: see `Access.check`.
        """
        row = await self.find(path)
        self._access.check(who, action, path, None if row is None else row.policy.rules, granted)
        if row is None:
            raise Refused(404, ABSENT, "absent")
        return row

    async def list(
        self, who: Who, prefix: str, after: str, limit: int, summary: Callable[[str, Record], dict[str, Any]]
    ) -> dict[str, Any]:
        """What is below a prefix and the caller may see, in the order of the paths.

        The store knows no order of names, so this reads all rows.
        """
        action = f"{self._kind}.list"

        async def work() -> dict[str, Any]:
            shown: list[tuple[str, dict[str, Any]]] = []
            async for item in self._table.iterate():
                path = item.name.decode()
                if item.name == DECOY or not path.startswith(prefix) or path <= after:
                    continue
                row = self._row(item)
                if self._access.allows(who, action, path, row.policy.rules):
                    shown.append((path, summary(path, row.record)))
            shown.sort(key=lambda one: one[0])
            await self._access.record(who, action, prefix, detail="prefix")
            found: dict[str, Any] = {f"{self._kind}s": [one for _, one in shown[:limit]]}
            return found | ({"next": shown[limit - 1][0]} if len(shown) > limit else {})

        return await self._access.run(who, action, prefix, work)

    def under(self, who: Who, record: Record, document: object) -> Record:
        """The record under the policy that the caller wrote. Raises: Refused: 422."""
        issuer = who.caller.issuer
        try:
            read_policy(document, self._kind, issuer)
            stored = with_issuers(document, issuer)
            canonical(stored)
        except PolicyMistake as mistake:
            raise Refused(422, str(mistake), "mistake") from mistake
        return replace(record, policy=stored)

    def write(self, path: str, record: Record | None, version: int) -> Write:
        """What puts a record in its row, or (None) takes the row away. Args: version: that the row has; 0: none."""
        return Write(self._table, path.encode(), None if record is None else record.encode(), version)

    def _row(self, item: Item) -> Row:
        return Row(item.version, *self._records.read(item))
