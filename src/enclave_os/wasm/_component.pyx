# Values across the border of a component, host functions, and one call in a store of its own, on wasmtime's C API.
#
# wasmtime-py compiles and links; what happens once per call happens here, since wasmtime-py walks the types again for
# every value (3 us for one byte of a list<u8>) and keeps an exception of one call in a global that the next one raises.
#
#     Plan          one WIT type, taken apart once:  lower  Python -> wt_val,  lift  wt_val -> Python
#     HostFunction  what a component imports
#     Call          store + instance + one call, then gone
#
# Invariant: whatever Python raises in a host function stays in its own Call (`failure`) and comes out of that call;
# wasmtime is given a text without content.
#
# Ownership: `lower` leaves `to` whole, also when it fails: who made `to` deletes it. `lift` takes nothing; what wasmtime
# gave us as a result is deleted by us, what it lends to a host function is deleted by wasmtime.
#
# Threads: a Call belongs to one thread. The GIL is released while wasm runs and taken again by host functions.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport INT64_MAX, INT64_MIN
from libc.string cimport memcpy, memset

import ctypes

from wasmtime import _ffi as library

from enclave_os.errors import InternalError
from enclave_os.wasm.errors import GuestTrap, ValueMismatch

cdef wt_api WT

cdef uintptr_t _address(str name) except 0:
    return ctypes.cast(getattr(library.dll, name), ctypes.c_void_p).value


cdef int _load() except -1:
    """Find wasmtime's functions in the library that wasmtime-py loaded, and compare what both of us believe."""
    if ctypes.sizeof(library.wasmtime_component_val_t) != sizeof(wt_val):
        raise ImportError("this wasmtime has values of another form")
    if ctypes.sizeof(library.wasmtime_component_func_t) != sizeof(wt_func):
        raise ImportError("this wasmtime has functions of another form")
    if ctypes.sizeof(library.wasmtime_component_instance_t) != sizeof(wt_instance):
        raise ImportError("this wasmtime has instances of another form")
    if library.WASMTIME_COMPONENT_RESOURCE.value != KIND_RESOURCE:
        raise ImportError("this wasmtime numbers the kinds of values in another way")
    (<uintptr_t *>&WT.byte_vec_new_uninitialized)[0] = _address("wasm_byte_vec_new_uninitialized")
    (<uintptr_t *>&WT.byte_vec_delete)[0] = _address("wasm_byte_vec_delete")
    (<uintptr_t *>&WT.error_new)[0] = _address("wasmtime_error_new")
    (<uintptr_t *>&WT.error_delete)[0] = _address("wasmtime_error_delete")
    (<uintptr_t *>&WT.error_message)[0] = _address("wasmtime_error_message")
    (<uintptr_t *>&WT.store_new)[0] = _address("wasmtime_store_new")
    (<uintptr_t *>&WT.store_context)[0] = _address("wasmtime_store_context")
    (<uintptr_t *>&WT.store_limiter)[0] = _address("wasmtime_store_limiter")
    (<uintptr_t *>&WT.store_delete)[0] = _address("wasmtime_store_delete")
    (<uintptr_t *>&WT.store_epoch_deadline_callback)[0] = _address("wasmtime_store_epoch_deadline_callback")
    (<uintptr_t *>&WT.context_get_data)[0] = _address("wasmtime_context_get_data")
    (<uintptr_t *>&WT.context_set_fuel)[0] = _address("wasmtime_context_set_fuel")
    (<uintptr_t *>&WT.context_get_fuel)[0] = _address("wasmtime_context_get_fuel")
    (<uintptr_t *>&WT.context_set_epoch_deadline)[0] = _address("wasmtime_context_set_epoch_deadline")
    (<uintptr_t *>&WT.linker_instantiate)[0] = _address("wasmtime_component_linker_instantiate")
    (<uintptr_t *>&WT.instance_get_func)[0] = _address("wasmtime_component_instance_get_func")
    (<uintptr_t *>&WT.func_call)[0] = _address("wasmtime_component_func_call")
    (<uintptr_t *>&WT.linker_instance_add_func)[0] = _address("wasmtime_component_linker_instance_add_func")
    (<uintptr_t *>&WT.linker_instance_add_resource)[0] = _address("wasmtime_component_linker_instance_add_resource")
    (<uintptr_t *>&WT.resource_type_new_host)[0] = _address("wasmtime_component_resource_type_new_host")
    (<uintptr_t *>&WT.resource_type_delete)[0] = _address("wasmtime_component_resource_type_delete")
    (<uintptr_t *>&WT.resource_host_new)[0] = _address("wasmtime_component_resource_host_new")
    (<uintptr_t *>&WT.resource_host_rep)[0] = _address("wasmtime_component_resource_host_rep")
    (<uintptr_t *>&WT.resource_host_delete)[0] = _address("wasmtime_component_resource_host_delete")
    (<uintptr_t *>&WT.resource_any_to_host)[0] = _address("wasmtime_component_resource_any_to_host")
    (<uintptr_t *>&WT.resource_host_to_any)[0] = _address("wasmtime_component_resource_host_to_any")
    (<uintptr_t *>&WT.vallist_new_uninit)[0] = _address("wasmtime_component_vallist_new_uninit")
    (<uintptr_t *>&WT.valtuple_new_uninit)[0] = _address("wasmtime_component_valtuple_new_uninit")
    (<uintptr_t *>&WT.valrecord_new_uninit)[0] = _address("wasmtime_component_valrecord_new_uninit")
    (<uintptr_t *>&WT.valflags_new_uninit)[0] = _address("wasmtime_component_valflags_new_uninit")
    (<uintptr_t *>&WT.val_new)[0] = _address("wasmtime_component_val_new")
    (<uintptr_t *>&WT.val_delete)[0] = _address("wasmtime_component_val_delete")
    return 0


_load()

MAX_PARAMS = PARAMS_MAX

KINDS = {
    "bool": KIND_BOOL, "s8": KIND_S8, "u8": KIND_U8, "s16": KIND_S16, "u16": KIND_U16, "s32": KIND_S32,
    "u32": KIND_U32, "s64": KIND_S64, "u64": KIND_U64, "f32": KIND_F32, "f64": KIND_F64, "char": KIND_CHAR,
    "string": KIND_STRING, "list": KIND_LIST, "record": KIND_RECORD, "tuple": KIND_TUPLE, "variant": KIND_VARIANT,
    "enum": KIND_ENUM, "option": KIND_OPTION, "result": KIND_RESULT, "flags": KIND_FLAGS, "own": KIND_RESOURCE,
    "borrow": KIND_RESOURCE,
}


@cython.final
cdef class Plan:
    """How values of one WIT type cross.

    Python has bool, int, float and str for the scalars (one character for `char`), bytes for list<u8> and list for the
    others, dict for a record, tuple, (case, payload) for a variant and for a result (`ok`, `err`), str for an enum,
    frozenset for flags, None or the payload for an option. In an option of an option, `some` is {"some": payload}.

    Args:
        kind: as WIT names it; `own` and `borrow` for resources.
        parts: plans of elements, fields or payloads; None for a case without payload.
        names: of fields, cases or flags.
    """

    def __cinit__(self, str kind, tuple parts=(), tuple names=()):
        self.kind = KINDS[kind]
        self.parts = parts
        self.names = names
        self.name_bytes = tuple([name.encode() for name in names])
        self.index = {name: position for position, name in enumerate(names)}
        self.owned = kind == "own"
        self.wrapped = kind == "option" and (<Plan>parts[0]).kind == KIND_OPTION


# -- Python to wasm ---------------------------------------------------------------------------------------------------

cdef str _label(Plan plan):
    for name, kind in KINDS.items():
        if kind == plan.kind:
            return name
    return "value"


cdef int _mismatch(Plan plan, object value) except -1:
    raise ValueMismatch(f"a value of type {_label(plan)} is needed, not {type(value).__name__}")


cdef int64_t _integer(Plan plan, object value, int64_t low, int64_t high) except? -1:
    if type(value) is not int:
        _mismatch(plan, value)
    if not low <= value <= high:
        raise ValueMismatch(f"{_label(plan)} is from {low} to {high}")
    return value


cdef int _put_text(wt_bytes *to, bytes data) except -1:
    WT.byte_vec_new_uninitialized(to, len(data))
    memcpy(to.data, PyBytes_AS_STRING(data), len(data))
    return 0


cdef wt_val *_payload(Plan plan, object value, Call call) except NULL:
    """One value by itself, in memory of wasmtime's."""
    cdef wt_val made
    memset(&made, 0, sizeof(made))
    try:
        lower(plan, value, &made, call)
    except BaseException:
        WT.val_delete(&made)
        raise
    return WT.val_new(&made)


cdef int lower(Plan plan, object value, wt_val *to, Call call) except -1:
    """Write `value` as `plan` says. `to` is all zero before; it is whole afterwards, whatever is raised."""
    cdef int kind = plan.kind
    cdef Py_ssize_t count, position
    cdef const uint8_t[::1] view
    cdef void *host
    cdef void *made = NULL
    cdef void *error
    if kind == KIND_STRING:
        if type(value) is not str:
            _mismatch(plan, value)
        data = (<str>value).encode()
        to.kind = KIND_STRING
        _put_text(&to.of.string, data)
    elif kind == KIND_LIST:
        part = <Plan>plan.parts[0]
        if (<Plan>part).kind == KIND_U8:
            if not isinstance(value, (bytes, bytearray, memoryview)):
                _mismatch(plan, value)
            view = value
            count = view.shape[0]
            WT.vallist_new_uninit(&to.of.list, count)
            if count:
                with nogil:  # the rest of each value is never looked at
                    wt_spread_bytes(to.of.list.data, &view[0], count, KIND_U8)
            to.kind = KIND_LIST
            return 0
        if not isinstance(value, (list, tuple)):
            _mismatch(plan, value)
        count = len(value)
        WT.vallist_new_uninit(&to.of.list, count)
        memset(to.of.list.data, 0, count * sizeof(wt_val))
        to.kind = KIND_LIST
        for position in range(count):
            lower(<Plan>part, value[position], &to.of.list.data[position], call)
    elif kind == KIND_RESULT:
        if type(value) is not tuple or len(value) != 2 or (value[0] != "ok" and value[0] != "err"):
            _mismatch(plan, value)
        part = plan.parts[0 if value[0] == "ok" else 1]
        if part is None and value[1] is not None:
            raise ValueMismatch(f"{value[0]} has no payload")
        to.of.result.val = NULL if part is None else _payload(<Plan>part, value[1], call)
        to.of.result.is_ok = value[0] == "ok"
        to.kind = KIND_RESULT
    elif kind == KIND_OPTION:
        if value is None:
            to.of.option = NULL
        else:
            if plan.wrapped:
                if type(value) is not dict or tuple(value) != ("some",):
                    _mismatch(plan, value)
                value = value["some"]
            to.of.option = _payload(<Plan>plan.parts[0], value, call)
        to.kind = KIND_OPTION
    elif kind == KIND_RECORD:
        if type(value) is not dict:
            _mismatch(plan, value)
        if len(value) != len(plan.names):
            raise ValueMismatch(f"a record has the fields {', '.join(plan.names)}")
        count = len(plan.names)
        WT.valrecord_new_uninit(&to.of.record, count)
        memset(to.of.record.data, 0, count * sizeof(wt_field))
        for position in range(count):
            _put_text(&to.of.record.data[position].name, plan.name_bytes[position])
        to.kind = KIND_RECORD
        for position in range(count):
            name = plan.names[position]
            if name not in <dict>value:
                raise ValueMismatch(f"the field {name} is missing")
            lower(<Plan>plan.parts[position], (<dict>value)[name], &to.of.record.data[position].val, call)
    elif kind == KIND_TUPLE:
        if not isinstance(value, (list, tuple)) or len(value) != len(plan.parts):
            _mismatch(plan, value)
        count = len(plan.parts)
        WT.valtuple_new_uninit(&to.of.list, count)
        memset(to.of.list.data, 0, count * sizeof(wt_val))
        to.kind = KIND_TUPLE
        for position in range(count):
            lower(<Plan>plan.parts[position], value[position], &to.of.list.data[position], call)
    elif kind == KIND_VARIANT:
        if type(value) is not tuple or len(value) != 2:
            _mismatch(plan, value)
        if value[0] not in plan.index:
            raise ValueMismatch(f"a variant is one of {', '.join(plan.names)}")
        position = plan.index[value[0]]
        part = plan.parts[position]
        if part is None and value[1] is not None:
            raise ValueMismatch(f"{value[0]} has no payload")
        to.of.variant.val = NULL if part is None else _payload(<Plan>part, value[1], call)
        _put_text(&to.of.variant.discriminant, plan.name_bytes[position])
        to.kind = KIND_VARIANT
    elif kind == KIND_ENUM:
        if type(value) is not str:
            _mismatch(plan, value)
        if value not in plan.index:
            raise ValueMismatch(f"an enum is one of {', '.join(plan.names)}")
        _put_text(&to.of.enumeration, plan.name_bytes[plan.index[value]])
        to.kind = KIND_ENUM
    elif kind == KIND_FLAGS:
        if not isinstance(value, (frozenset, set)):
            _mismatch(plan, value)
        chosen = [position for position, name in enumerate(plan.names) if name in value]
        if len(chosen) != len(value):
            raise ValueMismatch(f"flags are some of {', '.join(plan.names)}")
        count = len(chosen)
        WT.valflags_new_uninit(&to.of.flags, count)
        memset(to.of.flags.data, 0, count * sizeof(wt_bytes))
        for position in range(count):
            _put_text(&to.of.flags.data[position], plan.name_bytes[chosen[position]])
        to.kind = KIND_FLAGS
    elif kind == KIND_RESOURCE:
        if not plan.owned:
            raise InternalError("a host function cannot lend a resource")
        host = WT.resource_host_new(True, call._enter(value), value.RESOURCE)
        error = WT.resource_host_to_any(call.context, host, &made)
        WT.resource_host_delete(host)
        call.fail(error)
        to.of.resource = made
        to.kind = KIND_RESOURCE
    elif kind == KIND_BOOL:
        if type(value) is not bool:
            _mismatch(plan, value)
        to.of.boolean = value
        to.kind = KIND_BOOL
    elif kind == KIND_F64 or kind == KIND_F32:
        if type(value) is not float and type(value) is not int:
            _mismatch(plan, value)
        try:
            if kind == KIND_F64:
                to.of.f64 = value
            else:
                to.of.f32 = value
        except OverflowError as error_:
            raise ValueMismatch(f"{_label(plan)} cannot hold so large a number") from error_
        to.kind = kind
    elif kind == KIND_CHAR:
        if type(value) is not str or len(value) != 1 or 0xD800 <= ord(value) < 0xE000:
            raise ValueMismatch("a char is one character")
        to.of.character = ord(value)
        to.kind = KIND_CHAR
    elif kind == KIND_U64:
        if type(value) is not int:
            _mismatch(plan, value)
        if not 0 <= value <= 0xFFFF_FFFF_FFFF_FFFF:
            raise ValueMismatch("u64 is from 0 to 18446744073709551615")
        to.of.u64 = value
        to.kind = KIND_U64
    elif kind == KIND_S64:
        to.of.s64 = _integer(plan, value, INT64_MIN, INT64_MAX)
        to.kind = KIND_S64
    elif kind == KIND_U32:
        to.of.u32 = <uint32_t>_integer(plan, value, 0, 0xFFFF_FFFF)
        to.kind = KIND_U32
    elif kind == KIND_S32:
        to.of.s32 = <int32_t>_integer(plan, value, -0x8000_0000, 0x7FFF_FFFF)
        to.kind = KIND_S32
    elif kind == KIND_U16:
        to.of.u16 = <uint16_t>_integer(plan, value, 0, 0xFFFF)
        to.kind = KIND_U16
    elif kind == KIND_S16:
        to.of.s16 = <int16_t>_integer(plan, value, -0x8000, 0x7FFF)
        to.kind = KIND_S16
    elif kind == KIND_U8:
        to.of.u8 = <uint8_t>_integer(plan, value, 0, 0xFF)
        to.kind = KIND_U8
    else:
        to.of.s8 = <int8_t>_integer(plan, value, -0x80, 0x7F)
        to.kind = KIND_S8
    return 0


# -- wasm to Python ---------------------------------------------------------------------------------------------------

cdef str _text(wt_bytes *text):
    return PyUnicode_DecodeUTF8(text.data, text.size, NULL)


cdef object lift(Plan plan, wt_val *value, Call call):
    """What a value is in Python; `value` stays as it is, but a resource is given up by it."""
    cdef int kind = plan.kind
    cdef Py_ssize_t count, position
    cdef bytes data
    cdef bint whole
    cdef uint8_t *to
    cdef void *host = NULL
    cdef wt_val *values
    if value.kind != kind:
        raise InternalError("wasmtime gave a value of another type")
    if kind == KIND_STRING:
        return _text(&value.of.string)
    if kind == KIND_LIST:
        count = value.of.list.size
        part = <Plan>plan.parts[0]
        if (<Plan>part).kind == KIND_U8:
            data = PyBytes_FromStringAndSize(NULL, count)
            to = <uint8_t *>PyBytes_AS_STRING(data)
            values = value.of.list.data
            with nogil:
                whole = wt_gather_bytes(to, values, count, KIND_U8)
            if not whole:
                raise InternalError("wasmtime gave a list of another type")
            return data
        return [lift(<Plan>part, &value.of.list.data[position], call) for position in range(count)]
    if kind == KIND_RESULT:
        part = plan.parts[0 if value.of.result.is_ok else 1]
        payload = None if part is None else lift(<Plan>part, value.of.result.val, call)
        return ("ok" if value.of.result.is_ok else "err", payload)
    if kind == KIND_OPTION:
        if value.of.option == NULL:
            return None
        payload = lift(<Plan>plan.parts[0], value.of.option, call)
        return {"some": payload} if plan.wrapped else payload
    if kind == KIND_RECORD:
        if value.of.record.size != <size_t>len(plan.parts):
            raise InternalError("wasmtime gave a record of another type")
        return {
            plan.names[position]: lift(<Plan>plan.parts[position], &value.of.record.data[position].val, call)
            for position in range(len(plan.parts))
        }
    if kind == KIND_TUPLE:
        if value.of.list.size != <size_t>len(plan.parts):
            raise InternalError("wasmtime gave a tuple of another type")
        return tuple([
            lift(<Plan>plan.parts[position], &value.of.list.data[position], call)
            for position in range(len(plan.parts))
        ])
    if kind == KIND_VARIANT:
        name = _text(&value.of.variant.discriminant)
        part = plan.parts[plan.index[name]]
        return (name, None if part is None else lift(<Plan>part, value.of.variant.val, call))
    if kind == KIND_ENUM:
        return _text(&value.of.enumeration)
    if kind == KIND_FLAGS:
        return frozenset([_text(&value.of.flags.data[position]) for position in range(value.of.flags.size)])
    if kind == KIND_RESOURCE:
        call.fail(WT.resource_any_to_host(call.context, value.of.resource, &host))
        rep = WT.resource_host_rep(host)
        WT.resource_host_delete(host)
        return call._leave(rep) if plan.owned else call._at(rep)
    if kind == KIND_BOOL:
        return bool(value.of.boolean)
    if kind == KIND_F64:
        return value.of.f64
    if kind == KIND_F32:
        return <double>value.of.f32
    if kind == KIND_CHAR:
        return chr(value.of.character)
    if kind == KIND_U64:
        return value.of.u64
    if kind == KIND_S64:
        return value.of.s64
    if kind == KIND_U32:
        return value.of.u32
    if kind == KIND_S32:
        return value.of.s32
    if kind == KIND_U16:
        return value.of.u16
    if kind == KIND_S16:
        return value.of.s16
    if kind == KIND_U8:
        return value.of.u8
    return value.of.s8


# -- what a component imports -----------------------------------------------------------------------------------------

@cython.final
cdef class HostFunction:
    """A function that a component may call.

    Args:
        name: for the text of an error.
        function: called as `function(subject, *arguments)`, on the thread of the call. What it raises ends the call.
        params: plans of the parameters.
        result: plan of the result; None when there is none.
    """

    def __cinit__(self, str name, function, tuple params, Plan result):
        self.name = name
        self.function = function
        self.params = params
        self.result = result


cdef void _forget(void *data) noexcept with gil:
    Py_DECREF(<object>data)


cdef void *_on_host_call(
    void *data, void *context, void *type_, wt_val *args, size_t nargs, wt_val *results, size_t nresults
) noexcept with gil:
    cdef HostFunction host = <HostFunction>data
    cdef Call call = <Call>WT.context_get_data(context)
    cdef size_t position
    try:
        if nargs != <size_t>len(host.params) or nresults != <size_t>(host.result is not None):
            raise InternalError(f"{host.name}: wasmtime passes other parameters than it declared")
        values = [call.subject]
        for position in range(nargs):
            values.append(lift(<Plan>host.params[position], &args[position], call))
        answer = host.function(*values)
        if host.result is not None:
            lower(host.result, answer, &results[0], call)
        elif answer is not None:
            raise InternalError(f"{host.name} returns nothing")
    except BaseException as failure:
        return call.keep(failure)
    return NULL


cdef void *_on_drop(void *data, void *context, uint32_t rep) noexcept with gil:
    cdef Call call = <Call>WT.context_get_data(context)
    try:
        call._leave(rep).close()
    except BaseException as failure:
        return call.keep(failure)
    return NULL


cdef void *_on_epoch(void *context, void *data, uint64_t *delta, uint8_t *kind) noexcept with gil:
    cdef Call call = <Call>data
    try:
        call.on_epoch()
    except BaseException as failure:
        return call.keep(failure)
    delta[0] = 1
    kind[0] = 0  # WASMTIME_UPDATE_DEADLINE_CONTINUE
    return NULL


def count_memories(uintptr_t config):
    """Let an engine of this configuration, an address, take linear memories from us, counted for each call."""
    cdef wt_memory_creator creator
    creator.env = <void *>WT.error_new
    creator.make = <void *(*)(void *, const void *, size_t, size_t, size_t, size_t, wt_linear_memory *) noexcept nogil>wt_memory_make
    creator.finalizer = NULL
    (<void (*)(void *, wt_memory_creator *) noexcept nogil>_address("wasmtime_config_host_memory_creator_set"))(
        <void *>config, &creator)


def define_function(uintptr_t linker_instance, bytes name, HostFunction host not None):
    """Let a linker's instance, an address that wasmtime-py gave, have a function. The linker keeps `host`."""
    Py_INCREF(host)
    _check(WT.linker_instance_add_func(
        <void *>linker_instance, PyBytes_AS_STRING(name), len(name), <wt_host_call>_on_host_call, <void *>host,
        <wt_finalizer>_forget))


def define_resource(uintptr_t linker_instance, bytes name, uint32_t number):
    """Let a linker's instance have a resource type: objects whose class has `RESOURCE = number` and `close()`."""
    cdef void *kind = WT.resource_type_new_host(number)
    error = <uintptr_t>WT.linker_instance_add_resource(
        <void *>linker_instance, PyBytes_AS_STRING(name), len(name), kind, <wt_host_drop>_on_drop, NULL, NULL)
    WT.resource_type_delete(kind)
    _check(<void *><uintptr_t>error)


# -- one call ---------------------------------------------------------------------------------------------------------

cdef str _message(void *error):
    """An error's text, and the error is gone."""
    cdef wt_bytes text
    WT.error_message(error, &text)
    WT.error_delete(error)
    found = text.data[:min(text.size, <size_t>TEXT_SIZE_MAX)].decode("utf-8", "replace")
    WT.byte_vec_delete(&text)
    return found


cdef int _check(void *error) except -1:
    if error != NULL:
        raise GuestTrap(_message(error))
    return 0


@cython.final
cdef class Call:
    """A store, what it may use, and the one instance in it.

    Args:
        engine: address of a wasm_engine_t with fuel and epochs.
        subject: the first argument of every host function.
        fuel: what instantiation and call may use together.
        on_epoch: called on each tick of the engine's epoch while wasm runs, on this call's thread; what it raises ends
            the call, and it may wait.
        memory: bytes of each linear memory.
        elements: of each table.
        instances, tables, memories: core instances, tables and memories.
    """

    def __cinit__(self, uintptr_t engine, subject, uint64_t fuel, on_epoch, *, int64_t memory, int64_t elements,
                  int64_t instances, int64_t tables, int64_t memories):
        self.subject = subject
        self.on_epoch = on_epoch
        self.resources = {}
        self.next_rep = 1
        self.fuel = fuel
        self.store = WT.store_new(<void *>engine, <void *>self, NULL)
        self.context = WT.store_context(self.store)
        WT.store_limiter(self.store, memory, elements, instances, tables, memories)
        self.fail(WT.context_set_fuel(self.context, fuel))
        WT.context_set_epoch_deadline(self.context, 1)
        WT.store_epoch_deadline_callback(self.store, <wt_on_epoch>_on_epoch, <void *>self, NULL)

    def __dealloc__(self):
        if self.store != NULL:
            WT.store_delete(self.store)

    def close(self):
        """Give the memory back. Resources that the guest left open are closed."""
        cdef void *store = self.store
        self.store = NULL
        if store != NULL:
            with nogil:
                WT.store_delete(store)
        while self.resources:
            self.resources.popitem()[1].close()
        self.anchors = None

    def instantiate(self, uintptr_t linker, uintptr_t component, anchors):
        """Make the instance; `anchors` keeps alive what the two addresses belong to. Raises: GuestTrap."""
        cdef void *error
        if self.store == NULL:
            raise InternalError("the call is closed")
        self.anchors = anchors
        with nogil:
            global wt_counted
            wt_counted = &self.memory_used
            error = WT.linker_instantiate(<void *>linker, self.context, <void *>component, &self.instance)
            wt_counted = NULL
        self.fail(error)

    def call(self, uintptr_t export_index, tuple params not None, Plan result, tuple values not None):
        """Call one export, once. Returns: its result. Raises: GuestTrap, ValueMismatch, what a host function raised."""
        cdef wt_func function
        cdef wt_val args[PARAMS_MAX]
        cdef wt_val answer
        cdef void *error
        cdef size_t count = len(params)
        cdef size_t position
        cdef size_t answers = result is not None
        if self.store == NULL:
            raise InternalError("the call is closed")
        if count > PARAMS_MAX or len(values) != len(params):
            raise InternalError("a function is called with other parameters than it has")
        if not WT.instance_get_func(&self.instance, self.context, <void *>export_index, &function):
            raise InternalError("an export is gone")
        memset(args, 0, sizeof(args))
        memset(&answer, 0, sizeof(answer))
        try:
            for position in range(count):
                lower(<Plan>params[position], values[position], &args[position], self)
            with nogil:
                error = WT.func_call(&function, self.context, args, count, &answer, answers)
            self.fail(error)
            return lift(result, &answer, self) if answers else None
        finally:
            for position in range(count):
                WT.val_delete(&args[position])
            WT.val_delete(&answer)

    def fuel_left(self):
        """What remains of the fuel."""
        cdef uint64_t left = 0
        if self.store != NULL:
            self.fail(WT.context_get_fuel(self.context, &left))
        return left

    cdef int fail(self, void *error) except -1:
        """Raise what `error` is about, if it is there: what Python raised on the way, or a trap."""
        if error == NULL:
            return 0
        text = _message(error)
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        raise GuestTrap(text)

    cdef void *keep(self, object failure) noexcept:
        """Remember the first failure; what wasmtime is told has no content."""
        if self.failure is None:
            self.failure = failure
        return WT.error_new(b"the host ended the call")

    def _enter(self, resource):
        if len(self.resources) >= RESOURCES_MAX:
            raise GuestTrap(f"the guest holds more than {RESOURCES_MAX} resources")
        rep = self.next_rep
        while rep in self.resources or rep == 0:
            rep = (rep + 1) & 0xFFFF_FFFF
        self.next_rep = (rep + 1) & 0xFFFF_FFFF
        self.resources[rep] = resource
        return rep

    def _leave(self, rep):
        return self.resources.pop(rep)

    def _at(self, rep):
        return self.resources[rep]
