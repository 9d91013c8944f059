"""What apps may import: WASI 0.2 and the platform's own interfaces, each served from what the app was given."""

from typing import Final

from enclave_os.modules.wasm.host import crypto, filesystem, https, sockets, streams, system, values

INTERFACES: Final = (
    *streams.INTERFACES,
    *system.INTERFACES,
    *filesystem.INTERFACES,
    *sockets.INTERFACES,
    *crypto.INTERFACES,
    *values.INTERFACES,
    *https.INTERFACES,
)
