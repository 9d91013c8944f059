"""What goes wrong with components, by who is to blame: the app's developer, its caller, or the app as it runs."""

from enclave_os.errors import EnclaveError

__all__ = ["ComponentRefused", "GuestTrap", "ValueMismatch"]


class ComponentRefused(EnclaveError):
    """The component cannot be loaded: not one, too large, or it asks for what is not there. The text says which."""


class ValueMismatch(EnclaveError):
    """A value is not of the type that a function takes or returns."""


class GuestTrap(EnclaveError):
    """The app's code ended without an answer: a trap, a limit, or its own exit. Nothing of it remains.

    Attributes:
        reason: in one word for machines: `trap`, `fuel`, `deadline`, `memory`, `exit`, `cancelled`.
    """

    def __init__(self, message: str, reason: str = "trap") -> None:
        super().__init__(message)
        self.reason = reason
