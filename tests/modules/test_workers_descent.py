"""A worker that serves goes from one boot of worker 0 to another only along one line of descent, whatever is started.

It follows each that descends from what it serves, however many lives it missed, and no other.

The model knows the truth: which boot each life of worker 0 was started from, and which batches its store holds. The
host starts lives from any blob that there ever was, with a store that goes with it, and offers any to the worker.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from enclave_os.errors import SealBroken
from enclave_os.evidence.store_state import StoreState
from enclave_os.sealing import sealed_config
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import FORMER_MAX, SealedConfig
from enclave_os.sealing.welcome import Welcome
from tests.enclave.sealing import FakePlatform, policy


@dataclass(frozen=True)
class Life:
    """One life of worker 0: what it sealed, where it came from, and the batches that its store holds, in order."""

    config: SealedConfig
    came_from: Life | None
    batches: tuple[int, ...]

    def descends_from(self, other: Life) -> bool:
        life: Life | None = self
        while life is not None:
            if life.config.boot_nonce == other.config.boot_nonce:
                return True
            life = life.came_from
        return False

    def welcome(self) -> Welcome:
        return Welcome(self.config, len(self.batches), self.root)

    @property
    def root(self) -> bytes:
        return bytes(32) if not self.batches else hash(self.batches).to_bytes(8, "big", signed=True) * 4


class Descent(RuleBasedStateMachine):
    """One worker that remembers, and a host that has kept everything."""

    def __init__(self) -> None:
        super().__init__()
        first = sealed_config.first(policy())
        self.lives = [Life(first, None, ())]
        self.keeper = SealKeeper(cast(Any, None), FakePlatform(), policy())
        self.followed: list[Life] = []
        self.seen: StoreState | None = None
        self.batch = 0
        self.follow(self.lives[0])

    @rule(data=st.data(), forget=st.integers(0, 3))
    def start(self, data: st.DataObject, forget: int) -> None:
        """From any blob; the store may lack the last batches, as a copy from before them does."""
        parent = data.draw(st.sampled_from(self.lives))
        kept = parent.batches[: max(0, len(parent.batches) - forget)]
        self.lives.append(Life(parent.config.booted(), parent, kept))

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.lives) - 1))
        self.batch += 1
        life = self.lives[index]
        self.lives[index] = replace(life, batches=(*life.batches, self.batch))

    @rule(data=st.data())
    def offer(self, data: st.DataObject) -> None:
        self.follow(data.draw(st.sampled_from(self.lives)))

    def follow(self, life: Life) -> None:
        try:
            self.keeper.follow(life.welcome(), self.seen)
        except SealBroken:
            assert not self.must_follow(life)
            return
        self.followed.append(life)
        root = life.root if any(life.root) else None
        self.seen = StoreState(life.config.boot_count, life.config.boot_nonce, len(life.batches), root)

    def must_follow(self, life: Life) -> bool:
        """Whether it is a later life of what is served, not too far ahead, with all that was shown here."""
        held = self.followed[-1]
        ahead = life.config.boot_count - held.config.boot_count
        kept = life.batches[: len(held.batches)] == held.batches
        return 0 < ahead <= FORMER_MAX and kept and life.descends_from(held)

    @invariant()
    def one_line_of_descent(self) -> None:
        for before, after in zip(self.followed, self.followed[1:], strict=False):
            assert after.descends_from(before)
            assert len(after.batches) >= len(before.batches)
            if len(after.batches) == len(before.batches):
                assert after.batches == before.batches


TestDescent = Descent.TestCase
TestDescent.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
