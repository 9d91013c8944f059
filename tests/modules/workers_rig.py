"""Two ends of a channel with a host between them that carries as it is told."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from enclave_os.workers.channel import CHANNEL_ID_SIZE, KEY_SIZE, ChannelKeys
from enclave_os.workers.conversation import Conversation
from enclave_os.workers.link import Link


def make_keys() -> tuple[ChannelKeys, ChannelKeys]:
    """Both ends of one fresh exchange."""
    one = ChannelKeys(os.urandom(CHANNEL_ID_SIZE), os.urandom(KEY_SIZE), os.urandom(KEY_SIZE))
    return one, one.mirrored()


def make_links() -> tuple[Link, Link]:
    one, other = make_keys()
    return Link(one, "the channel to the other"), Link(other, "the channel to the one")


class Talk:
    """Two conversations in one loop; each turn of the loop the host carries what `tamper` makes of what waits.

    Attributes:
        tamper: gets the records that wait for one end, in order, and returns what it is given.
        errors: how each end ended.
        told: what each end was told.
    """

    def __init__(
        self,
        answer: Callable[[bytes], Coroutine[Any, Any, bytes]],
        tamper: Callable[[list[bytes]], list[bytes]] = lambda records: records,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.tamper = tamper
        self.held = False
        self.errors: list[BaseException | None] = [None, None]
        self.told: list[list[bytes]] = [[], []]
        self.records = 0
        self._waiting: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self.ends = [self._make(index, link, answer) for index, link in enumerate(make_links())]

    def _make(self, index: int, link: Link, answer: Callable[[bytes], Coroutine[Any, Any, bytes]]) -> Conversation:
        def carry(record: bytes) -> None:
            self.records += 1
            self._waiting[1 - index].append(record)
            self._loop.call_soon(self.deliver)

        def ended(error: BaseException) -> None:
            self.errors[index] = error

        return Conversation(
            link,
            carry,
            loop=self._loop,
            answer=answer,
            on_told=self.told[index].append,
            on_end=ended,
        )

    def deliver(self) -> None:
        """Carry what waits, unless the host holds it back."""
        if self.held:
            return
        for index, waiting in enumerate(self._waiting):
            records = self.tamper(list(waiting))
            waiting.clear()
            for record in records:
                self.ends[index].receive(record)

    def drop(self) -> None:
        """Lose what waits."""
        for waiting in self._waiting:
            waiting.clear()
