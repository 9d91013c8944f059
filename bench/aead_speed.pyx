# cython: language_level=3
# Loops over enclave_os._aead's C interface: one message after the other, without Python between them.
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from enclave_os._aead cimport AEAD_OK, AEADKey, aead_item_t, aead_nonce, aead_open, aead_seal

import time


def seal(AEADKey key not None, size_t size, int count, bint opening):
    """Nanoseconds to seal, or open, one message of `size` bytes without associated data."""
    cdef uint8_t nonce[12]
    cdef aead_item_t item
    cdef int index
    cdef bint fine = True
    cdef uint8_t *one = <uint8_t *>malloc(size + 16)
    cdef uint8_t *other = <uint8_t *>malloc(size + 16)
    if one == NULL or other == NULL:
        raise MemoryError
    memset(one, 7, size + 16)
    aead_nonce(0, nonce)
    item.nonce, item.aad, item.aad_size = nonce, nonce, 0
    item.input, item.input_size, item.output = one, size, other
    fine = aead_seal(key, &item) == AEAD_OK
    if opening:
        item.input, item.input_size, item.output = other, size + 16, one
    began = time.perf_counter_ns()
    with nogil:
        for index in range(count):
            if opening:
                fine = fine and aead_open(key, &item) == AEAD_OK
            else:
                aead_nonce(index, nonce)
                fine = fine and aead_seal(key, &item) == AEAD_OK
    took = time.perf_counter_ns() - began
    free(one)
    free(other)
    if not fine:
        raise RuntimeError("a message did not go")
    return took / count
