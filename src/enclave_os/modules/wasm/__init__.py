"""Apps as WebAssembly components: the module `wasm`."""

from enclave_os.modules.wasm.module import Wasm

__all__ = ["Wasm"]
