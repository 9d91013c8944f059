"""Our end of a connection to a server that is to prove itself: TLS, evidence, and the verdict before a request leaves.

What a client outside does and what an enclave does that calls another one is the same: so it stands here once, and both
use it. Streams come from outside (a socket there, a ring here); time comes as an argument.
"""
