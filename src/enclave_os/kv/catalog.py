"""Which namespaces there are: an entry for each, written with its first one, so that a start finds all tables."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from enclave_os.kv._record import tag_of
from enclave_os.kv.batch import Batch
from enclave_os.kv.freshness import Freshness, Place
from enclave_os.kv.namespace import Namespace, catalog_name
from enclave_os.wire.kv import Operation, OperationKind

CATALOG: Final = "\0catalog"


class Catalog:
    """Args: namespace: where its entries are. in_flight: places that batches under way change.

    Attributes:
        namespace: as given.
        entered: tables that are known to be there.
    """

    def __init__(self, namespace: Namespace, fresh: Freshness, in_flight: Container[Place]) -> None:
        self.namespace = namespace
        self.entered: set[bytes] = set()
        self._fresh = fresh
        self._in_flight = in_flight

    def enter(self, batch: Batch, namespace: Namespace) -> None:
        """Have the batch enter a namespace, unless it is there, or one that it follows does."""
        name = catalog_name(namespace.app, namespace.name)
        token = self.namespace.token(name)
        place = (self.namespace.table, token)
        if self._fresh.find(place) is not None:
            self.entered.add(namespace.table)
        elif place not in batch.latest and place not in self._in_flight:
            record = self.namespace.seal_entry(token, batch.version, name, 0, b"")
            batch.operations.append(Operation(OperationKind.PUT, self.namespace.table, token, record))
            batch.latest[place] = (batch.version, tag_of(record))
