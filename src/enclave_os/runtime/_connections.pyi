"""All client connections of one enclave process. Docstrings are in `_connections.pyx`."""

from typing import final

@final
class Connections:
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def publish(self) -> None: ...
