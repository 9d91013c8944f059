# cython: language_level=3
# Loops over enclave_os._tls's C interface, as the ingress uses it: ciphertext lent, plaintext into a private buffer,
# ciphertext into a sink that copies. Only the serving end is inside the clock; the client's records are made before.
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from enclave_os._tls cimport (
    TLS_WANT_INPUT, TLSContext, tls_close, tls_conn_free, tls_conn_new, tls_conn_t, tls_pending, tls_read, tls_write,
)

import time

cdef enum:
    OUTPUT_ROOM = 1 << 26
    PLAIN_ROOM = 65536
    PIECE = 16384               # what one DATA frame brings at most

cdef struct wire_t:
    uint8_t *data
    size_t size
    bint keep                   # append, or overwrite from the start: a ring in the small

cdef void copy_in(uint8_t *to, const uint8_t *from_, size_t size) noexcept nogil:
    memcpy(to, from_, size)

cdef int take(void *arg, const uint8_t *data, size_t size) noexcept nogil:
    cdef wire_t *wire = <wire_t *>arg
    if not wire.keep:
        wire.size = 0
    if wire.size + size > OUTPUT_ROOM:
        return -1
    memcpy(wire.data + wire.size, data, size)
    wire.size += size
    return 0


cdef class Pair:
    """Both ends of a connection in one process, after the handshake."""

    cdef tls_conn_t *server
    cdef tls_conn_t *client
    cdef wire_t to_client
    cdef wire_t to_server
    cdef uint8_t *plain

    def __cinit__(self, TLSContext server not None, TLSContext client not None):
        self.to_client.data = <uint8_t *>malloc(OUTPUT_ROOM)
        self.to_server.data = <uint8_t *>malloc(OUTPUT_ROOM)
        self.plain = <uint8_t *>malloc(PLAIN_ROOM)
        if self.to_client.data == NULL or self.to_server.data == NULL or self.plain == NULL:
            raise MemoryError
        self.to_client.keep = self.to_server.keep = True
        self.server = tls_conn_new(server, copy_in, take, &self.to_client)
        self.client = tls_conn_new(client, copy_in, take, &self.to_server)
        for _ in range(3):
            self.move(self.client, &self.to_client)
            self.move(self.server, &self.to_server)
        if not self.server.handshake_done or not self.client.handshake_done:
            raise RuntimeError("no handshake")

    def __dealloc__(self):
        tls_conn_free(self.server)
        tls_conn_free(self.client)
        free(self.to_client.data)
        free(self.to_server.data)
        free(self.plain)

    cdef int move(self, tls_conn_t *end, wire_t *wire) except -1:
        end.input, end.input_size = wire.data, wire.size
        if tls_read(end, self.plain, PLAIN_ROOM) != TLS_WANT_INPUT:
            raise RuntimeError("not a handshake")
        wire.size = 0
        return 0

    def answer(self, int count, int request_size, int response_size):
        """Nanoseconds to read one request and write one response, each a TLS record of its own."""
        cdef int index
        cdef size_t at = 0
        cdef size_t step
        self.to_server.size = 0
        for index in range(count):
            if tls_write(self.client, self.plain, request_size) != 0:
                raise RuntimeError("client cannot write")
        step = self.to_server.size // count
        self.to_client.keep = False
        began = time.perf_counter_ns()
        for index in range(count):
            self.server.input, self.server.input_size = self.to_server.data + at, step
            at += step
            if tls_read(self.server, self.plain, PLAIN_ROOM) != request_size or tls_pending(self.server):
                raise RuntimeError("server cannot read")
            if tls_write(self.server, self.plain, response_size) != 0:
                raise RuntimeError("server cannot write")
        took = time.perf_counter_ns() - began
        self.forget()
        return took / count

    cdef int forget(self) except -1:
        # The client has to take what was written to nowhere: a new pair is needed for anything further from the server.
        self.to_client.size = self.to_server.size = 0
        self.to_client.keep = True
        return 0

    def receive(self, size_t size):
        """Nanoseconds to decrypt `size` bytes that arrive in pieces of 16 KiB."""
        cdef size_t done = 0
        cdef size_t at = 0
        cdef int got
        self.to_server.size = 0
        while done < size:
            if tls_write(self.client, self.plain, min(<size_t>PIECE, size - done)) != 0:
                raise RuntimeError("client cannot write")
            done += min(<size_t>PIECE, size - done)
        done = 0
        began = time.perf_counter_ns()
        while at < self.to_server.size:
            self.server.input = self.to_server.data + at
            self.server.input_size = min(<size_t>PIECE, self.to_server.size - at)
            at += self.server.input_size
            while self.server.input_size or tls_pending(self.server):
                got = tls_read(self.server, self.plain, PLAIN_ROOM)
                if got < 0:
                    raise RuntimeError("server cannot read")
                done += got
        took = time.perf_counter_ns() - began
        self.to_server.size = 0
        if done != size:
            raise RuntimeError("bytes are missing")
        return took

    def send(self, size_t size):
        """Nanoseconds to encrypt `size` bytes by one write into a sink that copies."""
        cdef uint8_t *data = <uint8_t *>malloc(size)
        if data == NULL:
            raise MemoryError
        self.to_client.keep = False
        began = time.perf_counter_ns()
        cdef int result = tls_write(self.server, data, size)
        took = time.perf_counter_ns() - began
        free(data)
        self.forget()
        if result != 0:
            raise RuntimeError("server cannot write")
        return took
