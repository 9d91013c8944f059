"""The sealed key-value store: what modules keep on a disk that nobody trusts. docs/kv.md."""
