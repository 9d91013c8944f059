# Reads that are under way: each knows what it must find, and judges the row where it lies in the host's reply.
cimport cython
from libc.stdint cimport uint8_t, uint64_t

from enclave_os._rows cimport Wanted
from enclave_os.kv._freshness cimport TAG_SIZE, Freshness, slot_t
from enclave_os.kv._record cimport Records

# All reads of one store.
@cython.final
cdef class Reads:
    cdef Freshness _fresh
    cdef dict _in_flight        # places that batches under way change: the pipeline's own
    cdef object _anchoring
    cdef bint _commits          # the anchor must know all that is shown
    cdef object _ask
    cdef object _make_future
    cdef object _trusted_ns
    cdef object _again
    cdef type _item
    cdef object _unread
    cdef dict _waiting          # table: reads that go out with the next call
    cdef object _begin(self, namespace, Records records, bytes token, bytes name)
    cdef Read _made(self, namespace, Records records, bytes token, bytes name, const slot_t *slot)
    cdef bint _is_elsewhere(self, Records records, bytes token) except -1

# One row, from asking to its item.
@cython.final
cdef class Read(Wanted):
    cdef Reads _reads
    cdef Records _records
    cdef object _namespace
    cdef bytes _name            # None: not known
    cdef uint64_t _version      # of the latest record, when it was asked for
    cdef uint8_t[TAG_SIZE] _tag
    cdef object _future         # who waits for this one alone, or
    cdef ReadMany _many         # for it among others,
    cdef Py_ssize_t _index      # at this place
    cdef int _anew(self) except -1
    cdef int _count(self) except -1

# Several rows that one caller waits for.
@cython.final
cdef class ReadMany:
    cdef readonly list items    # in the order of their tokens; complete when `future` is done
    cdef readonly list moved    # indexes of items that must be read anew
    cdef readonly object future
    cdef Py_ssize_t _left
