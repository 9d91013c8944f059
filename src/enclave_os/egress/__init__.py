"""HTTPS to the outside: TLS ends here, the host carries bytes. docs/egress.md follows one call."""
