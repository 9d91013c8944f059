"""Refusals of the sealed store that are not tampering: somebody else wrote first, or there is no room to wait."""

from enclave_os.errors import EnclaveError


class VersionConflict(EnclaveError):
    """The key does not have the version that the write was made for. Nothing was written.

    Attributes:
        version: the one it has; 0: the key is absent.
    """

    def __init__(self, version: int) -> None:
        super().__init__(f"the key has version {version}: read it again, and write for that version")
        self.version = version


class StoreBusy(EnclaveError):
    """More writes wait than the store takes. Nothing was written; try again later."""
