"""The audit over HTTP, for auditors.

GET /vault/audit                  every chain: where it begins, its last page and entry, and the hash of that
GET /vault/audit?chain=&page=     the entries of some pages from `page` on, and `next`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from enclave_os.errors import StoreBusy
from enclave_os.http import Request, Response, json_response
from enclave_os.modules.api import NO_STORE, Route, Table
from enclave_os.modules.vault.access import Access, Refused
from enclave_os.modules.vault.audit import Page, ends, page_name, read_page
from enclave_os.modules.vault.request_fields import number, query_of

PAGES_PER_ANSWER: Final = 32  # of 12 KiB
CHAINS_MAX: Final = 64  # one a worker
PAGE_MAX: Final = 2**53
READS_MAX: Final = 4  # of pages that are written meanwhile


class AuditRoutes:
    """The handlers."""

    def __init__(self, access: Access, table: Table) -> None:
        self._access = access
        self._table = table

    def routes(self) -> Sequence[Route]:
        """For the module's table."""
        return (Route("GET", "/vault/audit", self.read),)

    async def read(self, request: Request) -> Response:
        """Chains, or some pages of one."""
        who = await self._access.who(request)
        query = query_of(request, ("chain", "page"))

        async def work() -> dict[str, Any]:
            self._access.check(who, "audit.read", "", ())
            await self._access.record(who, "audit.read", "")
            if not query:
                return await self._chains()
            chain = number(query.get("chain", "0"), "chain", 0, CHAINS_MAX - 1)
            return await self._pages(chain, number(query.get("page", "1"), "page", 1, PAGE_MAX))

        return json_response(await self._access.run(who, "audit.read", "", work), 200, [NO_STORE])

    async def _chains(self) -> dict[str, Any]:
        found = []
        for chain in range(CHAINS_MAX):
            begins, page = await ends(self._table, chain)
            if page.number:
                found.append(
                    {
                        "chain": chain,
                        "begins": {"page": begins.page, "entry": begins.first, "previous": begins.previous.hex()},
                        "pages": page.number,
                        "entries": page.last,
                        "hash": page.hash.hex(),
                    }
                )
        return {"chains": found}

    async def _pages(self, chain: int, first: int) -> dict[str, Any]:
        pages = await self._read(chain, first)
        more = len(pages) > PAGES_PER_ANSWER
        pages = pages[:PAGES_PER_ANSWER]  # with a page behind it, the last of them is full and will not change
        found: dict[str, Any] = {
            "chain": chain,
            "page": first,
            "first": pages[0].first,
            "previous": pages[0].previous.hex(),
            "entries": [json.loads(line) for page in pages for line in page.lines],
            "hash": pages[-1].hash.hex(),
        }
        return found | ({"next": first + len(pages)} if more else {})

    async def _read(self, chain: int, first: int) -> list[Page]:
        """Pages that follow each other, one more than an answer has, as they were at one moment."""
        names = [page_name(chain, first + index) for index in range(PAGES_PER_ANSWER + 1)]
        for _ in range(READS_MAX):
            pages = []
            for at, item in enumerate(await self._table.multi_get(names), first):
                if item is None:  # behind the last page, or pruned
                    break
                pages.append(read_page(chain, at, item))
            if not pages:
                raise Refused(404, "the chain has no such page", "absent")
            if all(page.hash == following.previous for page, following in pairwise(pages)):
                return pages
        raise StoreBusy("the audit is written all the time: read it again later")
