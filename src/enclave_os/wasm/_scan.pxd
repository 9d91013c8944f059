# What compiling a component would cost, read from its bytes before the compiler sees them: the limits, with reasons.
#
# Measured with wasmtime 49 as engine.SETTINGS has it (`make hostile-wasm` measures again). CPython's component, 19 MB,
# is the largest that people load: 13,395 functions, 6.6 MB of code, some 17 s and 560 MiB. Each limit is a few times
# what it or SpiderMonkey's needs, and all of them together keep the compiler below 2 GiB.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from enclave_os.wasm._bytes cimport Cursor

cdef enum:
    MEMBERS_MAX = 10_000            # of all types of interfaces: wasmtime-py takes 26 s to name 50,000
    MODULES_MAX = 1000
    FUNCTIONS_MAX = 50_000          # 6 KB and 50 us each, however empty: 1e5 took 640 MiB
    TYPES_MAX = 10_000              # of functions; each has entries of its own, 8 KB: 1e5 took 850 MiB
    # Values of one type: 6 KB of nested loops with 1000 parameters took more than 12 GB. The canonical ABI passes 16.
    PARAMS_MAX = 255
    RESULTS_MAX = 16
    ITEMS_MAX = 50_000              # of each further kind in all: imports, exports, globals, aliases, segments
    # Elements that tables begin with, and bytes of segments: 12 KB of tables with one element each, at their ends, took
    # more than 6 GB.
    ELEMENTS_MAX = 1_000_000

    # A component that another instantiates twice is there twice, so 30 lines can ask for 2**30 instances.
    INSTANCES_MAX = 1000
    # Adapters between components are code that the compiler writes, as long as the types that cross: 0.4 us a byte.
    ADAPTER_BYTES_MAX = 64 << 20    # functions that cross, times the bytes of all types

    # Of one function. The compiler holds one at a time, and several of its passes are quadratic.
    CODE_MAX = 1 << 20              # bytes; CPython's largest has 427 KB. 110 bytes of memory each
    BRANCHES_MAX = 16_000           # CPython's most: 7,780. 16,000 take 1.3 s; 125,000 took minutes
    LOOPS_MAX = 16_000              # each checks fuel and epoch: 27 KB of memory while the function is compiled;
                                    # conversions of floats that may not fit take as much
    # Each place where ways meet may need its own copy of each local and of each value that the ways bring along: 33 KB
    # of wasm with 6e6 such pairs took 750 MiB.
    PAIRS_MAX = 1_000_000           # SpiderMonkey's most: 260,000
    LOCALS_MAX = 50_000             # wasm's own limit
    FUNCTION_WORK_MAX = 10_000_000  # see below; 18 loops with 49,000 locals took minutes

    # Of the whole: units of about a microsecond on one core of 2020. CPython's has 15 s, SpiderMonkey's 23 s.
    WORK_MAX = 80_000_000

# What one of each adds to the work.
cdef enum:
    FUNCTION_WORK = 50
    TYPE_BYTE_WORK = 10
    TRAP_WORK = 18                  # a load, a store, a division, a table access: a check and a way out
    CALL_WORK = 5
    LOOP_WORK = 65
    QUADRATIC_PER = 200             # branches squared, divided by this
    DECLARED_PER = 20               # locals, used or not
    PAIRS_PER = 1000                # branches times locals times locals, divided by this


cdef struct Body:
    uint64_t branches               # ways that part, weighted by how many blocks the compiler makes of them
    uint64_t joins                  # places where ways meet
    uint64_t loops                  # and what becomes as much code as the checks of one
    uint64_t traps                  # instructions that check something and may end the call
    uint64_t calls
    uint64_t locals                 # different ones that are used
    uint64_t declared               # used or not
    uint64_t targets                # of jump tables
    uint64_t typed                  # blocks that take or give values by a type's number: nested loops cost their square
    uint64_t widest                 # values that one way brings along, at the most
    int unknown                     # an instruction that is not known: its first byte; -1: none


cdef class Scan:
    # Counts of all modules of a component together, and what they amount to.
    cdef readonly uint64_t modules, functions, code, types, items, elements, type_bytes
    cdef readonly uint64_t members                  # of types of interfaces
    cdef readonly uint64_t instances, adapters      # as they would be made, each as often as it is instantiated
    cdef readonly uint64_t work                     # microseconds, about
    cdef uint16_t *arity                            # of the current module's types: parameters and results
    cdef uint64_t arities, widest_result, widest_type
    cdef uint32_t *seen                             # local -> the function that used it last, counted from 1

    cdef tuple _component(self, Cursor *within, int depth)
    cdef int _component_types(self, Cursor *within, uint64_t count) except -1
    cdef int _module(self, Cursor *within) except -1
    cdef int _types(self, Cursor *within) except -1
    cdef int _tables(self, Cursor *within) except -1
    cdef int _code(self, Cursor *within) except -1
    cdef int _count(self, uint64_t *total, uint64_t more, uint64_t most, str what) except -1
    cdef int _add_work(self, uint64_t more) except -1
