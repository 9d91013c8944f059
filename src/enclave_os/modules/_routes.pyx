"""Routes without parameters, found and called without a Python frame of our own: a sixth of what a small request costs
the enclave outside OpenSSL. What to do about the rest, and about a module's mistakes, the registry says."""

cimport cython
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject

from enclave_os.http._message cimport Request, Response


@cython.final
cdef class ExactRoutes:
    """The table of exact routes, filled by the registry: it may be added to at any time.

    Args:
        by_method: method -> path -> handler; every method that the parser lets pass is there. Kept, not copied.
        others: answers what is not in the table.
        failed: called with the request and what its handler raised, of the kinds `failures`; returns the answer.
        unlike: called with the request and what its handler returned, which is no Response; returns the answer.
    """

    def __init__(self, dict by_method not None, others not None, failed not None, unlike not None,
                 tuple failures not None):
        self.by_method, self.others, self.failed, self.unlike = by_method, others, failed, unlike
        self.failures = failures

    def respond(self, Request request not None):
        """The answer to `request`, or a coroutine that returns it. Neither raises, but for cancellation."""
        cdef PyObject *handler = PyDict_GetItemWithError(<dict>self.by_method[request.method], request.path)
        if handler == NULL:
            return self.others(request)
        try:
            answer = (<object>handler)(request)
        except self.failures as error:
            return self.failed(request, error)
        return answer if isinstance(answer, Response) else self.unlike(request, answer)
