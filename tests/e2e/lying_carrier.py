"""A host whose carrier lies: loaded into the host of one installation by its .pth, before the supervisor takes it.

One record in some hundreds is dropped, doubled, held back behind the next, sent back, or changed, each of these once: a
worker that finds one is started anew, with a growing delay.
"""

import random
import sys

if "enclave_os_host" in sys.orig_argv:
    from enclave_os_host.handlers import peers

    class LyingCarrier(peers.Carrier):
        """Honest but for a few records."""

        def __init__(self, count: int) -> None:
            super().__init__(count)
            self._chosen = random.Random(count)
            self._lies = ["drop", "double", "hold", "reflect", "change"]
            self._held: list[tuple[int, int, bytes]] = []

        def _put(self, to: int, sender: int, record: bytes) -> None:
            if not record or not self._lies or self._chosen.random() > 0.004:
                super()._put(to, sender, record)
                held, self._held = self._held, []
                for late in held:
                    super()._put(*late)
                return
            lie = self._lies.pop()
            sys.stderr.write(f"the carrier lies: {lie}\n")
            if lie == "double":
                super()._put(to, sender, record)
                super()._put(to, sender, record)
            elif lie == "hold":
                self._held.append((to, sender, record))
            elif lie == "reflect":
                super()._put(sender, to, record)
            elif lie == "change":
                super()._put(to, sender, record[:-1] + bytes([record[-1] ^ 1]))

    peers.Carrier = LyingCarrier  # type: ignore[misc]
