# Writes on their way into a batch.
cimport cython

cdef enum:
    NAME_SIZE_MAX = 1024
    INLINE_SIZE_MAX = 16 * 1024     # of a value that lies in its row
    VALUE_SIZE_MAX = 16 << 20
    BATCH_SIZE_MAX = 1 << 20        # in as many messages as it takes: what waits for one fsync, in an enclave's memory
    CHANGES_MAX = 1024              # of one batch: how long the loop is held up by sealing them
    TABLES_MAX = 200                # that one batch writes to
    CHANGE_SIZE = 400               # entry, deletion of former parts, a namespace's own row: without names and value

# A write that waits for its batch.
@cython.final
@cython.freelist(64)
cdef class Waiting:
    cdef readonly object changes    # a sequence of `change.Change`
    cdef readonly list places       # of the changes
    cdef readonly Py_ssize_t size   # of its messages, at most
    cdef readonly Py_ssize_t held   # bytes of values
    cdef readonly bint large        # a value needs parts: `parts`, when they are written, by the index of their change
    cdef readonly bint conditional  # a change expects a version
    cdef readonly object future
    cdef public object parts
