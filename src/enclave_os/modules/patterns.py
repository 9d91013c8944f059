"""Routes with parameters, taken apart: which requests each answers, and what it finds in their paths.

    /vault/keys/{name}                  one segment, never empty
    /vault/secrets/{path...}            one segment or more, none empty: the rest of the path
    /vault/secrets/{path...}/versions   the same in front of what ends the path

The path comes from the parser: decoded once, without dot segments, and no decoded character of it is a `/`, a NUL or a
backslash that was not one on the wire (HT5). So what looks like a segment is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from enclave_os.modules.api import Handler, Route

REST: Final = "..."


class Pattern:
    """A route with parameters.

    Attributes:
        size: number of segments; with a rest parameter, the least number.
        shape: its path with nameless parameters: two routes of one shape would answer the same requests.
        rest: index of the segment at which the rest parameter begins; None without one.
        literals: how many segments are given; what says more is asked first.
    """

    __slots__ = ("_after", "_before", "_rest_name", "handler", "literals", "method", "owner", "rest", "shape", "size")

    def __init__(self, route: Route, handler: Handler, owner: str) -> None:
        segments = route.path.split("/")
        names: Mapping[int, str] = dict(route.parameters)
        self.method = route.method
        self.handler = handler
        self.owner = owner
        self.size = len(segments)
        self.rest = next((index for index, name in names.items() if name.endswith(REST)), None)
        self._rest_name = "" if self.rest is None else names[self.rest].removesuffix(REST)
        single = [index for index in names if index != self.rest]
        # Before a rest parameter segments are counted from the front, after it from the end (-1 is the last).
        end = self.size if self.rest is None else self.rest
        places = [(index if index < end else index - self.size, index) for index in range(self.size)]
        self._before = tuple((place, segments[index]) for place, index in places if index not in names)
        self._after = tuple((place, names[index]) for place, index in places if index in single)
        self.literals = len(self._before)
        self.shape = "/".join(
            segment if index not in names else "{...}" if index == self.rest else "{}"
            for index, segment in enumerate(segments)
        )

    def answers(self, method: str) -> bool:
        """Whether it answers that method."""
        return method == self.method or (method == "HEAD" and self.method == "GET")

    def matches(self, segments: Sequence[str]) -> bool:
        """Whether it answers that path, of at least `size` segments (or, without a rest parameter, just so many)."""
        for place, text in self._before:
            if segments[place] != text:
                return False
        for place, _ in self._after:
            if not segments[place]:
                return False
        return self.rest is None or all(segments[self.rest : len(segments) - (self.size - self.rest - 1)])

    def parameters(self, segments: Sequence[str]) -> dict[str, str]:
        """What `request.params` holds, of a path that matches."""
        found = {name: segments[place] for place, name in self._after}
        if self.rest is not None:
            found[self._rest_name] = "/".join(segments[self.rest : len(segments) - (self.size - self.rest - 1)])
        return found


class Patterns:
    """All of them, in the order in which they are asked: those of single segments before those with a rest, and of
    these the one with more given segments first. Otherwise the order in which they were added decides."""

    def __init__(self) -> None:
        self._sized: dict[int, list[Pattern]] = {}
        self._rest: list[Pattern] = []

    def add(self, pattern: Pattern) -> bool:
        """Take one in; False when there is one of the same method and shape."""
        same = self._rest if pattern.rest is not None else self._sized.setdefault(pattern.size, [])
        if any((other.method, other.shape) == (pattern.method, pattern.shape) for other in same):
            return False
        same.append(pattern)
        return True

    def order(self) -> None:
        """To be called once all are there."""
        for patterns in self._sized.values():
            patterns.sort(key=lambda pattern: pattern.method != "HEAD")  # before the GET that would answer it as well
        self._rest.sort(key=lambda pattern: (-pattern.literals, pattern.method != "HEAD"))

    def find(self, method: str, segments: Sequence[str]) -> Pattern | None:
        """The one that answers."""
        for pattern in self._sized.get(len(segments), ()):
            if pattern.answers(method) and pattern.matches(segments):
                return pattern
        for pattern in self._rest:
            if pattern.size <= len(segments) and pattern.answers(method) and pattern.matches(segments):
                return pattern
        return None

    def methods(self, segments: Sequence[str]) -> set[str]:
        """Every method that one answers on this path, HEAD beside GET left out."""
        found = {pattern.method for pattern in self._sized.get(len(segments), ()) if pattern.matches(segments)}
        return found | {p.method for p in self._rest if p.size <= len(segments) and p.matches(segments)}
