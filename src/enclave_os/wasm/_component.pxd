# Values across the border of a component, host functions, and one call in a store of its own: the C interface.
from libc.stdint cimport (
    int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t,
)

cdef extern from "wasm/_wasmtime.h" nogil:
    ctypedef struct wt_val
    ctypedef struct wt_field
    ctypedef struct wt_bytes:
        size_t size
        char *data
    ctypedef struct wt_vals:
        size_t size
        wt_val *data
    ctypedef struct wt_fields:
        size_t size
        wt_field *data
    ctypedef struct wt_names:
        size_t size
        wt_bytes *data
    ctypedef struct wt_variant:
        wt_bytes discriminant
        wt_val *val
    ctypedef struct wt_result:
        bint is_ok
        wt_val *val
    ctypedef union wt_of:
        bint boolean
        int8_t s8
        uint8_t u8
        int16_t s16
        uint16_t u16
        int32_t s32
        uint32_t u32
        int64_t s64
        uint64_t u64
        float f32
        double f64
        uint32_t character
        wt_bytes string
        wt_vals list
        wt_fields record
        wt_variant variant
        wt_bytes enumeration
        wt_val *option
        wt_result result
        wt_names flags
        void *resource
    ctypedef struct wt_val:
        uint8_t kind
        wt_of of
    ctypedef struct wt_field:
        wt_bytes name
        wt_val val
    ctypedef struct wt_func:
        uint32_t b
    ctypedef struct wt_instance:
        uint64_t store_id
    ctypedef void *(*wt_host_call)(void *, void *, void *, wt_val *, size_t, wt_val *, size_t) noexcept nogil
    ctypedef void *(*wt_host_drop)(void *, void *, uint32_t) noexcept nogil
    ctypedef void *(*wt_on_epoch)(void *, void *, uint64_t *, uint8_t *) noexcept nogil
    ctypedef void (*wt_finalizer)(void *) noexcept nogil
    ctypedef struct wt_api:
        void (*byte_vec_new_uninitialized)(wt_bytes *, size_t) noexcept nogil
        void (*byte_vec_delete)(wt_bytes *) noexcept nogil
        void *(*error_new)(const char *) noexcept nogil
        void (*error_delete)(void *) noexcept nogil
        void (*error_message)(const void *, wt_bytes *) noexcept nogil
        void *(*store_new)(void *, void *, wt_finalizer) noexcept nogil
        void *(*store_context)(void *) noexcept nogil
        void (*store_limiter)(void *, int64_t, int64_t, int64_t, int64_t, int64_t) noexcept nogil
        void (*store_delete)(void *) noexcept nogil
        void (*store_epoch_deadline_callback)(void *, wt_on_epoch, void *, wt_finalizer) noexcept nogil
        void *(*context_get_data)(const void *) noexcept nogil
        void *(*context_set_fuel)(void *, uint64_t) noexcept nogil
        void *(*context_get_fuel)(const void *, uint64_t *) noexcept nogil
        void (*context_set_epoch_deadline)(void *, uint64_t) noexcept nogil
        void *(*linker_instantiate)(const void *, void *, const void *, wt_instance *) noexcept nogil
        bint (*instance_get_func)(const wt_instance *, void *, const void *, wt_func *) noexcept nogil
        void *(*func_call)(const wt_func *, void *, const wt_val *, size_t, wt_val *, size_t) noexcept nogil
        void *(*linker_instance_add_func)(
            void *, const char *, size_t, wt_host_call, void *, wt_finalizer) noexcept nogil
        void *(*linker_instance_add_resource)(
            void *, const char *, size_t, const void *, wt_host_drop, void *, wt_finalizer) noexcept nogil
        void *(*resource_type_new_host)(uint32_t) noexcept nogil
        void (*resource_type_delete)(void *) noexcept nogil
        void *(*resource_host_new)(bint, uint32_t, uint32_t) noexcept nogil
        uint32_t (*resource_host_rep)(const void *) noexcept nogil
        void (*resource_host_delete)(void *) noexcept nogil
        void *(*resource_any_to_host)(void *, const void *, void **) noexcept nogil
        void *(*resource_host_to_any)(void *, const void *, void **) noexcept nogil
        void (*vallist_new_uninit)(wt_vals *, size_t) noexcept nogil
        void (*valtuple_new_uninit)(wt_vals *, size_t) noexcept nogil
        void (*valrecord_new_uninit)(wt_fields *, size_t) noexcept nogil
        void (*valflags_new_uninit)(wt_names *, size_t) noexcept nogil
        wt_val *(*val_new)(wt_val *) noexcept nogil
        void (*val_delete)(wt_val *) noexcept nogil
    void wt_spread_bytes(wt_val *to, const uint8_t *from_, size_t size, uint8_t kind)
    bint wt_gather_bytes(uint8_t *to, const wt_val *from_, size_t size, uint8_t kind)

cdef extern from "wasm/_memory.h" nogil:
    ctypedef struct wt_linear_memory
    ctypedef struct wt_memory_creator:
        void *env
        void *(*make)(void *, const void *, size_t, size_t, size_t, size_t, wt_linear_memory *) noexcept nogil
        void (*finalizer)(void *) noexcept nogil
    void *wt_memory_make(void *, const void *, size_t, size_t, size_t, size_t, wt_linear_memory *)
    size_t *wt_counted              # of this thread: where the memories that it makes are counted

# The kinds of a value as wasmtime numbers them, and what only a plan tells apart.
cdef enum:
    KIND_BOOL = 0
    KIND_S8 = 1
    KIND_U8 = 2
    KIND_S16 = 3
    KIND_U16 = 4
    KIND_S32 = 5
    KIND_U32 = 6
    KIND_S64 = 7
    KIND_U64 = 8
    KIND_F32 = 9
    KIND_F64 = 10
    KIND_CHAR = 11
    KIND_STRING = 12
    KIND_LIST = 13
    KIND_RECORD = 14
    KIND_TUPLE = 15
    KIND_VARIANT = 16
    KIND_ENUM = 17
    KIND_OPTION = 18
    KIND_RESULT = 19
    KIND_FLAGS = 20
    KIND_RESOURCE = 21

    # A guest that opens and never closes: far above what a program holds, and some hundred KiB of ours.
    RESOURCES_MAX = 4096
    TEXT_SIZE_MAX = 2048        # of an error's text: a backtrace of a deep recursion is long
    PARAMS_MAX = 32             # the component model passes at most 16 flat; more is a record in disguise


cdef class Plan:
    # How one type crosses, made once from the type: no type is looked up while values move.
    cdef readonly int kind
    cdef readonly tuple parts           # Plan or None: elements, fields, payloads; of a resource: nothing
    cdef readonly tuple names           # fields, cases, flags
    cdef tuple name_bytes
    cdef dict index                     # name -> position
    cdef bint owned                     # of a resource: own<T>, not borrow<T>
    cdef bint wrapped                   # of an option: its payload is an option, so `some` is written out


cdef class HostFunction:
    # One function that a component imports: called with the call's subject and the lifted arguments.
    cdef readonly str name
    cdef readonly object function
    cdef readonly tuple params
    cdef readonly Plan result           # None: returns nothing


cdef class Call:
    # One store with one instance. Not shared between threads; closed, it is of no use.
    cdef void *store
    cdef void *context
    cdef readonly object subject        # handed to every host function
    cdef object on_epoch
    cdef object failure                 # what a host function or the epoch raised, until the call has come back
    cdef dict resources                 # rep -> object
    cdef uint32_t next_rep
    cdef wt_instance instance
    cdef object anchors                 # what the store points into
    cdef readonly uint64_t fuel
    cdef readonly size_t memory_used    # bytes of all its linear memories; they only grow

    cdef int fail(self, void *error) except -1
    cdef void *keep(self, object failure) noexcept


cdef object lift(Plan plan, wt_val *value, Call call)
cdef int lower(Plan plan, object value, wt_val *to, Call call) except -1
