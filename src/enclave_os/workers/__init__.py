"""Enclave to enclave: workers of one server, who talk over a channel that the host only carries. docs/kv.md."""
