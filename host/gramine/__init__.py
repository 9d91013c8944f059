"""Building, measuring and starting the enclave for Gramine: what `enclave-os gramine` and `serve --enclave` rest on."""
