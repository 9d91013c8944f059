"""Enclave OS: attested HTTPS from inside an enclave. Imports nothing: both sides of the border execute this file."""

__version__ = "0.1.0"
