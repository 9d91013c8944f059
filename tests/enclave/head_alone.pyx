# Our own reading of a head, without llhttp before it: for test_http_head.py.
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF

from enclave_os.http._head cimport head_path, head_read, head_t, http_limits_t


def read(bytes head not None):
    """(0, path) of a head that is accepted, (status, reason) of one that is not."""
    cdef http_limits_t limits = http_limits_t(16384, 100, 8192, 1 << 24)
    cdef head_t h
    cdef PyObject *path
    cdef object text
    if not head_read(&h, head, <unsigned int>len(head), &limits):
        return h.status, h.reason.decode("ascii")
    path = head_path(&h, head)
    if path == NULL:
        return 400, "malformed request target"
    text = <object>path
    Py_XDECREF(path)
    return 0, text
