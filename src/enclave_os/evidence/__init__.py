"""Attestation evidence as bytes: what it looks like, what it binds, and what a verifier concludes from it.

Pure: bytes in, verdict out. No I/O, no clock, no network, nothing of the border. The enclave uses it to make and to
judge evidence, the client to judge it, so that both read the same bytes in the same way.
"""
