# The table of exact routes: table of contents. What it is and does stands in _routes.pyx.
cimport cython

@cython.final
cdef class ExactRoutes:
    cdef dict by_method         # method -> path -> handler, the registry's
    cdef object others          # callable(Request) -> answer
    cdef object failed          # callable(Request, BaseException) -> Response
    cdef object unlike          # callable(Request, object) -> answer
    cdef tuple failures         # what a handler may raise at the cost of its request only
