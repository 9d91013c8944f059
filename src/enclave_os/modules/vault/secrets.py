"""Secrets: versions under paths, each with a policy of its own.

The row of a secret holds policy, versions and a small current value, so that most reads are one look-up; larger values,
and those of former versions, have rows of their own. Writing a version, the audit's entry and what falls off the end
happen in one batch, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from enclave_os.http import HTTPError
from enclave_os.modules.api import Clock, Storage, Write
from enclave_os.modules.vault.access import ABSENT, DENIED, Access, Refused, Who, caller_key, enclave_key
from enclave_os.modules.vault.policy import Rule
from enclave_os.modules.vault.policy_document import Approval, check_path, owned_by
from enclave_os.modules.vault.record import Record, State, Version
from enclave_os.modules.vault.rows import Rows

SECRET_SIZE_MAX: Final = 1 << 20
BESIDE_SIZE_MAX: Final = 2 << 10  # a value that stands in the secret's own row
VERSIONS_MAX: Final = 32
VERSIONS_KEPT: Final = 10
TTL_MAX: Final = 10 * 366 * 24 * 3600  # seconds
DATA_FOLDER: Final = "data"
"""Below it only `POST /data` makes secrets: whoever has this word for a subject could take the places of others."""
APPROVED_ACTIONS: Final = frozenset({"secret.read", "secret.policy"})
"""What needs the second person, where a policy asks for one: to take that away needs it as well."""

_NS: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Found:
    """A secret that was read."""

    version: Version
    value: bytes = field(repr=False)


class Secrets:
    """The operations. Each raises HTTPError through `Access.run`, and what the store raises.

    Args:
        versions_kept: of a secret; with the next one the oldest is destroyed.
    """

    def __init__(self, access: Access, storage: Storage, clock: Clock, *, versions_kept: int = VERSIONS_KEPT) -> None:
        self._access = access
        self._clock = clock
        self._rows = Rows(access, storage.table("secrets"), "secret")
        self._values = storage.table("values")
        self._approvals = storage.table("approvals")
        self._versions_kept = versions_kept

    async def open(self) -> None:
        """Lay out the decoy."""
        await self._rows.open()

    # -- one secret ----------------------------------------------------------------------------------------------------

    async def read(self, who: Who, path: str, number: int = 0, *, granted: Rule | None = None) -> Found:
        """The value of a version; 0: the latest.

        Args: granted: what holds of this caller beside the section's rules.
        """

        async def work() -> Found:
            row = await self._rows.allowed(who, "secret.read", path, granted)
            version = _live(row.record, number, self._now_s())
            used = await self._use_approval(who, "secret.read", path, row.policy.approval)
            value = await self._value(path, row.record, version)
            await self._access.record(who, "secret.read", path, used, version=version.number)
            return Found(version, value)

        return await self._access.run(who, "secret.read", path, work)

    async def write(
        self,
        who: Who,
        path: str,
        value: bytes,
        *,
        cas: int | None = None,
        ttl: int = 0,
        granted: Rule | None = None,
    ) -> Version:
        """A new version. The first makes the secret, which is its maker's alone then.

        Args:
            cas: the number that the latest version must have; 0: the secret must not be there.
            ttl: seconds until the version counts as deleted; 0: never.
            granted: what holds of this caller beside the section's rules.
        """
        mistake = check_path(path)
        if mistake:
            raise HTTPError(422, mistake)

        async def work() -> Version:
            row = await self._rows.find(path)
            if row is None:
                reserved = granted is None and path.startswith(f"{DATA_FOLDER}/")
                if reserved or not self._access.allows(who, "secret.create", path, _rules(granted)):
                    raise Refused(403, DENIED, "denied")
                record = Record(_own_policy(who))
            else:
                self._access.check(who, "secret.write", path, row.policy.rules, granted)
                record = row.record
            latest = record.current.number if record.current is not None else 0
            if cas is not None and cas != latest:
                raise Refused(409, f"the latest version is {latest}", "conflict")
            now_ms = self._clock.trusted_ns() // _NS_PER_MS
            version = Version(record.next_number, now_ms, who.name, len(value), now_ms // 1000 + ttl if ttl else 0)
            writes = self._with_version(path, record, version, value, 0 if row is None else row.version)
            await self._access.record(
                who, "secret.create" if row is None else "secret.write", path, writes, version=version.number
            )
            return version

        return await self._access.change(who, "secret.write", path, work)

    async def versions(self, who: Who, path: str) -> dict[str, Any]:
        """All versions, without their values."""

        async def work() -> dict[str, Any]:
            row = await self._rows.allowed(who, "secret.list", path)
            await self._access.record(who, "secret.list", path)
            return self._document(path, row.record)

        return await self._access.run(who, "secret.list", path, work)

    async def delete(self, who: Who, path: str, numbers: frozenset[int]) -> dict[str, Any]:
        """Versions (none named: the latest) count as not there, until `undelete`."""
        return await self._change_states(who, "secret.delete", path, numbers, State.DELETED)

    async def undelete(self, who: Who, path: str, numbers: frozenset[int]) -> dict[str, Any]:
        """Versions are there again."""
        return await self._change_states(who, "secret.delete", path, numbers, State.LIVE)

    async def destroy(self, who: Who, path: str, numbers: frozenset[int]) -> dict[str, Any]:
        """The values of versions are gone for good."""
        return await self._change_states(who, "secret.destroy", path, numbers, State.DESTROYED)

    async def purge(self, who: Who, path: str) -> None:
        """The whole secret is gone, its policy and its history with it; the path is free."""

        async def work() -> None:
            row = await self._rows.allowed(who, "secret.destroy", path)
            writes = [self._rows.write(path, None, row.version)]
            writes += [Write(self._values, _value_name(path, version.number), None) for version in row.record.versions]
            await self._access.record(who, "secret.destroy", path, writes, detail="purged")

        await self._access.change(who, "secret.destroy", path, work)

    async def _change_states(
        self, who: Who, action: str, path: str, numbers: frozenset[int], state: State
    ) -> dict[str, Any]:
        async def work() -> dict[str, Any]:
            row = await self._rows.allowed(who, action, path)
            record = row.record
            if record.current is None:
                raise Refused(404, ABSENT, "absent")
            chosen = numbers or frozenset({record.current.number})
            unknown = sorted(number for number in chosen if record.find(number) is None)
            if unknown:
                raise Refused(404, f"there is no version {unknown[0]}", "absent")
            changed = record.with_states(chosen, state)
            writes: list[Write] = []
            if state is State.DESTROYED:
                writes = [Write(self._values, _value_name(path, number), None) for number in sorted(chosen)]
                if record.value_of in chosen:
                    changed = replace(changed, value_of=0, value=b"")
            writes.append(self._rows.write(path, changed, row.version))
            word = "undeleted" if state is State.LIVE else state.value
            detail = f"{word} {','.join(map(str, sorted(chosen)))}"
            await self._access.record(who, action, path, writes, detail=detail)
            return self._document(path, changed)

        return await self._access.change(who, action, path, work)

    # -- policy and approval -------------------------------------------------------------------------------------------

    async def policy(self, who: Who, path: str) -> Mapping[str, Any]:
        """The policy's document."""

        async def work() -> Mapping[str, Any]:
            row = await self._rows.allowed(who, "secret.policy", path)
            await self._access.record(who, "secret.policy", path, detail="read")
            return row.record.policy

        return await self._access.run(who, "secret.policy", path, work)

    async def set_policy(self, who: Who, path: str, document: object) -> Mapping[str, Any]:
        """Another policy. Where the present one asks for a second person's word, this needs it too."""

        async def work() -> Mapping[str, Any]:
            row = await self._rows.allowed(who, "secret.policy", path)
            changed = self._rows.under(who, row.record, document)
            used = await self._use_approval(who, "secret.policy", path, row.policy.approval)
            writes = [*used, self._rows.write(path, changed, row.version)]
            await self._access.record(who, "secret.policy", path, writes, detail="changed")
            return changed.policy

        return await self._access.change(who, "secret.policy", path, work)

    async def approve(self, who: Who, path: str, reader: bytes, action: str, shown: str) -> int:
        """Let one other person do `action` once, soon. Returns: until when, seconds since the Unix epoch."""

        async def work() -> int:
            approval = (await self._rows.allowed(who, "secret.approve", path)).policy.approval
            if approval is None:
                raise Refused(409, "its policy asks for no approval", "unasked")
            if who.token is None or who.key == reader:
                raise Refused(403, "nobody approves for himself, and only a person with a token approves", "self")
            until = self._now_s() + approval.seconds
            write = Write(self._approvals, _approval_name(path, reader, action), until.to_bytes(8, "big") + who.key)
            await self._access.record(who, "secret.approve", path, [write], detail=f"{action} for {shown}")
            return until

        return await self._access.run(who, "secret.approve", path, work)

    async def _use_approval(self, who: Who, action: str, path: str, approval: Approval | None) -> list[Write]:
        """What uses an approval up, with the operation that needs it; nothing where none is needed."""
        if approval is None:
            return []
        name = _approval_name(path, who.key, action)
        item = await self._approvals.get(name)
        if item is None or self._now_s() >= int.from_bytes(item.value[:8], "big"):
            roles = ", ".join(sorted(approval.roles))
            raise Refused(403, f"a second person must approve this first: one with the role {roles}", "unapproved")
        return [Write(self._approvals, name, None, item.version)]

    # -- many secrets --------------------------------------------------------------------------------------------------

    async def list(self, who: Who, prefix: str, after: str, limit: int) -> dict[str, Any]:
        """Secrets below a prefix that the caller may see, in the order of their paths, without their values.

        The store knows no order of names, so this reads the rows of all secrets; their large values it does not.
        """
        return await self._rows.list(who, prefix, after, limit, self._summary)

    # -- rows ----------------------------------------------------------------------------------------------------------

    async def _value(self, path: str, record: Record, version: Version) -> bytes:
        if record.value_of == version.number:
            return record.value
        item = await self._values.get(_value_name(path, version.number))
        if item is None:
            raise Refused(404, ABSENT, "absent")
        return item.value

    def _with_version(self, path: str, record: Record, version: Version, value: bytes, row: int) -> Sequence[Write]:
        writes: list[Write] = []
        versions = (*record.versions, version)
        for old in versions[: -self._versions_kept]:
            writes.append(Write(self._values, _value_name(path, old.number), None))
        versions = versions[-self._versions_kept :]
        if record.value_of and any(one.number == record.value_of for one in versions):
            writes.append(Write(self._values, _value_name(path, record.value_of), record.value))
        beside = len(value) <= BESIDE_SIZE_MAX
        if not beside:
            writes.append(Write(self._values, _value_name(path, version.number), value))
        changed = replace(
            record,
            versions=versions,
            next_number=version.number + 1,
            value_of=version.number if beside else 0,
            value=value if beside else b"",
        )
        return [*writes, self._rows.write(path, changed, row)]

    def _summary(self, path: str, record: Record) -> dict[str, Any]:
        found: dict[str, Any] = {"path": path, "audit": self._access.path_token("secret", path)}
        return found if record.current is None else found | {"current": record.current.document()}

    def _document(self, path: str, record: Record) -> dict[str, Any]:
        return self._summary(path, record) | {"versions": [version.document() for version in record.versions]}

    def _now_s(self) -> int:
        return self._clock.trusted_ns() // _NS


def _rules(granted: Rule | None) -> tuple[Rule, ...]:
    return () if granted is None else (granted,)


def reader_key(issuer: str, subject: str, mr_enclave: bytes) -> bytes:
    """For whom an approval is: somebody with a token, or an enclave without one."""
    return caller_key(issuer, subject) if subject else enclave_key(mr_enclave)


def _live(record: Record, number: int, now_s: int) -> Version:
    version = record.find(number)
    if version is None or not version.is_live(now_s):
        raise Refused(404, ABSENT, "absent")
    return version


def _own_policy(who: Who) -> dict[str, Any]:
    if who.token is None:
        raise Refused(403, "a secret is made with a token: its owner is a subject", "ownerless")
    return owned_by(who.caller.issuer, who.caller.subject)


def _value_name(path: str, number: int) -> bytes:
    return path.encode() + b"\0" + number.to_bytes(8, "big")


def _approval_name(path: str, reader: bytes, action: str) -> bytes:
    return path.encode() + b"\0" + reader + action.encode()
