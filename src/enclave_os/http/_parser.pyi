from typing import Final, final

from typing_extensions import Buffer

from enclave_os.http._message import Request

NEED_DATA: Final[int]
REQUEST: Final[int]
CONTINUE: Final[int]
REFUSED: Final[int]

AT_START: Final[int]
IN_HEAD: Final[int]
IN_BODY: Final[int]
DONE: Final[int]
AT_REFUSAL: Final[int]

PARSER_SIZE: Final[int]
METHOD_NAMES: Final[tuple[str, ...]]

@final
class RequestParser:
    def __new__(
        cls,
        head_size_max: int = 16384,
        header_count_max: int = 100,
        target_size_max: int = 8192,
        body_size_max: int = 16777216,
    ) -> RequestParser: ...
    def feed(self, data: Buffer) -> tuple[int, int]: ...
    def take(self) -> Request: ...
    def next(self) -> None: ...
    @property
    def state(self) -> int: ...
    @property
    def keep_alive(self) -> bool: ...
    @property
    def is_head(self) -> bool: ...
    @property
    def body_size(self) -> int: ...
    @property
    def status(self) -> int: ...
    @property
    def reason(self) -> str: ...
