"""A server's answer, member by member: what it must have and has not is that server's mistake, and said so."""

from __future__ import annotations

import datetime
from typing import Any, Final, TypeVar

from enclave_os.errors import ServerProtocolError

LAST_SECOND: Final = 253_402_300_799  # of the year 9999, the last that a calendar here has

Kind = TypeVar("Kind")


class Answer(dict[str, Any]):
    """A JSON object that a server sent. Every method raises ServerProtocolError where there is no such member.

    Args: server: who it is from, as errors name it.
    """

    def __init__(self, document: dict[str, Any], server: str) -> None:
        super().__init__(document)
        self.server = server

    def text(self, name: str) -> str:
        """A member that is a text."""
        return self._checked(self.get(name), str, f"a text {name!r}")

    def number(self, name: str) -> int:
        """A member that is a whole number."""
        found = self._checked(self.get(name), int, f"a number {name!r}")
        if isinstance(found, bool):
            raise self.lacks(f"a number {name!r}")
        return found

    def moment(self, name: str) -> str:
        """A member that counts seconds since the Unix epoch, for people."""
        second = self.number(name)
        if not 0 <= second <= LAST_SECOND:
            raise self.lacks(f"a time {name!r}")
        return f"{datetime.datetime.fromtimestamp(second, datetime.UTC):%Y-%m-%d %H:%M} UTC"

    def flag(self, name: str) -> bool:
        """A member that is true or false."""
        return self._checked(self.get(name), bool, f"a truth value {name!r}")

    def inner(self, name: str) -> Answer:
        """A member that is an object."""
        return self._answer(self.get(name), f"an object {name!r}")

    def inner_or_none(self, name: str) -> Answer | None:
        """A member that is an object or null; it must be there."""
        if name in self and self[name] is None:
            return None
        return self.inner(name)

    def inners(self, name: str) -> list[Answer]:
        """A member that is a list of objects."""
        what = f"a list of objects {name!r}"
        return [self._answer(one, what) for one in self._checked(self.get(name), list, what)]

    def texts(self, name: str) -> list[str]:
        """A member that is a list of texts."""
        what = f"a list of texts {name!r}"
        return [self._checked(one, str, what) for one in self._checked(self.get(name), list, what)]

    def lacks(self, what: str) -> ServerProtocolError:
        """The error to raise for an answer without `what`."""
        return ServerProtocolError(f"{self.server}: the answer lacks {what}: another version, or no server of ours")

    def _answer(self, value: object, what: str) -> Answer:
        return Answer(self._checked(value, dict, what), self.server)

    def _checked(self, value: object, kind: type[Kind], what: str) -> Kind:
        if not isinstance(value, kind):
            raise self.lacks(what)
        return value
