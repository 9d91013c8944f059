"""RA-TLS: what a connection proves itself with."""
