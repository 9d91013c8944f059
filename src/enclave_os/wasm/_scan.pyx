# What compiling a component would cost, found out in one pass over its bytes (some 10 ms for a large one).
#
# The compiler runs inside the enclave, cannot be stopped, and ends the process when it finds no memory. A few hundred
# bytes can ask it for any amount of both. So what is too much is refused before, by the name of what is too much.
#
#     component:  sections -> nested components, core modules, instances, aliases, imports, exports
#     module:     sections -> counts, and the code of each function, instruction by instruction
#
# Nothing is validated here beyond what counting needs; wasmtime does that. What this cannot read to the last byte is
# refused: no two opinions about what was counted. Every loop over a count ends with the bytes.
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from enclave_os.wasm._bytes cimport Cursor, byte, index_of, number, part, skip, skip_signed, skip_type
from enclave_os.wasm._declared cimport *

from enclave_os.wasm.errors import ComponentRefused

LIMITS = {
    "functions": FUNCTIONS_MAX, "types": TYPES_MAX, "params": PARAMS_MAX, "results": RESULTS_MAX, "items": ITEMS_MAX,
    "elements": ELEMENTS_MAX, "instances": INSTANCES_MAX, "adapters": ADAPTER_BYTES_MAX, "code": CODE_MAX,
    "branches": BRANCHES_MAX, "loops": LOOPS_MAX, "pairs": PAIRS_MAX, "work": WORK_MAX,
    "members": MEMBERS_MAX,
}

cdef enum:
    HEADER_SIZE = 8
    # Sections of a module.
    MODULE_TYPES = 1
    MODULE_FUNCTIONS = 3
    MODULE_TABLES = 4
    MODULE_START = 8
    MODULE_ELEMENTS = 9
    MODULE_CODE = 10
    MODULE_DATA_COUNT = 12
    MODULE_SECTION_LAST = 13


# -- one function -----------------------------------------------------------------------------------------------------

cdef inline void use(Cursor *c, Body *body, uint32_t *seen, uint32_t stamp) noexcept nogil:
    cdef uint64_t local = index_of(c)
    if local >= LOCALS_MAX:
        c.broken = True
    elif seen[local] != stamp:
        seen[local] = stamp
        body.locals += 1


cdef inline void memory_access(Cursor *c) noexcept nogil:
    cdef uint64_t alignment = index_of(c)
    if alignment & 0x40:  # of a memory that has a number (multi-memory)
        index_of(c)
    number(c, 10)


cdef inline void block(Cursor *c, Body *body, const uint16_t *arity, uint64_t arities) noexcept nogil:
    """The type of a block: nothing, one value, or a function's type by its number."""
    cdef uint64_t index
    if c.at < c.end and c.at[0] & 0xC0 == 0x40:
        skip_type(c)
        return
    index = index_of(c)
    body.typed += 1
    if index >= arities:
        c.broken = True
    elif arity[index] > body.widest:
        body.widest = arity[index]


cdef void prefixed(Cursor *c, Body *body) noexcept nogil:
    """Behind 0xFC: saturating conversions, bulk memory, tables."""
    cdef uint64_t op = index_of(c)
    body.traps += 1
    if op == 8 or op == 10 or op == 12 or op == 14:
        index_of(c)
    if 8 <= op <= 17:
        index_of(c)
    elif op > 7 and not 19 <= op <= 22:
        body.unknown = 0xFC


cdef void vector(Cursor *c, Body *body) noexcept nogil:
    """Behind 0xFD: vectors."""
    cdef uint64_t op = index_of(c)
    if op <= 11 or 84 <= op <= 93:
        body.traps += 1
        memory_access(c)
    body.loops += op == 0xF8 or op == 0xF9 or op == 0xFC or op == 0xFD  # conversions of four at once
    if op == 12 or op == 13:
        skip(c, 16)
    elif 21 <= op <= 34 or 84 <= op <= 91:
        byte(c)  # a lane
    elif op > 0x113:
        body.unknown = 0xFD


cdef void read_body(
    Cursor *c, Body *body, const uint16_t *arity, uint64_t arities, uint64_t widest_type, uint32_t *seen, uint32_t stamp
) noexcept nogil:
    """One function: its locals, then its instructions to the last byte."""
    cdef uint64_t count = index_of(c)
    cdef uint8_t op
    while count and not c.broken:
        body.declared += index_of(c)
        skip_type(c)
        count -= 1
    while c.at < c.end and not c.broken and body.unknown < 0:
        op = byte(c)
        if 0x20 <= op <= 0x22:
            use(c, body, seen, stamp)
        elif op == 0x41 or op == 0x42:
            skip_signed(c)
        elif 0x28 <= op <= 0x3E:
            body.traps += 1
            memory_access(c)
        elif 0x45 <= op <= 0xC4:
            body.traps += 0x6D <= op <= 0x70 or 0x7F <= op <= 0x82  # divisions
            body.loops += 0xA8 <= op <= 0xAB or 0xAE <= op <= 0xB1  # conversions that may not fit: as much code
        elif 0x02 <= op <= 0x04:
            body.joins += 1
            body.branches += op != 0x02
            body.loops += op == 0x03
            block(c, body, arity, arities)
        elif op == 0x05:
            body.joins += 1
            body.branches += 1
        elif op == 0x0C or op == 0x23 or op == 0x24 or op == 0xD2:
            body.traps += op == 0x24
            index_of(c)
        elif op == 0x0D or op == 0xD5 or op == 0xD6:
            body.joins += 1
            body.branches += 1
            index_of(c)
        elif op == 0x0E:
            body.joins += 1
            body.branches += 1
            count = index_of(c)
            body.targets += count
            while count and not c.broken:
                index_of(c)
                count -= 1
            index_of(c)
        elif op == 0x10 or op == 0x12 or op == 0x08 or op == 0x3F or op == 0x40:
            body.calls += 1
            index_of(c)
        elif op == 0x11 or 0x13 <= op <= 0x15:
            body.branches += 3  # a null entry, another type, a missing function
            body.joins += 1
            body.calls += 1
            index_of(c)
            if op <= 0x13:
                index_of(c)
        elif op == 0x25 or op == 0x26:
            body.branches += 2  # entries are made when they are first looked at
            body.joins += 1
            body.traps += 1
            index_of(c)
        elif op == 0x43 or op == 0x44:
            skip(c, 4 if op == 0x43 else 8)
        elif op == 0x1C:
            count = index_of(c)
            while count and not c.broken:
                skip_type(c)
                count -= 1
        elif op == 0xD0:
            skip_type(c)
        elif op == 0xFC:
            prefixed(c, body)
        elif op == 0xFD:
            vector(c, body)
        elif op == 0x1F:
            body.joins += 1
            body.branches += 1
            block(c, body, arity, arities)
            body.widest = max(body.widest, widest_type)  # what an exception brings
            count = index_of(c)
            while count and not c.broken:
                body.joins += 1
                body.branches += 1
                if byte(c) < 2:
                    index_of(c)  # which exception
                index_of(c)
                count -= 1
        elif op == 0x0A:
            body.calls += 1
        elif op == 0x00 or op == 0xD4:
            body.traps += 1
        elif not (op == 0x01 or op == 0x0B or op == 0x0F or op == 0x1A or op == 0x1B or op == 0xD1):
            body.unknown = op


# -- modules and components -------------------------------------------------------------------------------------------

cdef inline bint next_section(Cursor *within, uint8_t *kind, Cursor *section) noexcept nogil:
    """The next section. Returns: whether there is one; one that does not end within leaves `within` broken."""
    if within.broken or within.at >= within.end:
        return False
    kind[0] = byte(within)
    section[0] = part(within, index_of(within))
    return not section.broken


@cython.final
cdef class Scan:
    """What a component would cost to compile.

    Args: wasm: a binary component.
    Raises: ComponentRefused: it is too much, and what of it; or it cannot be read.
    """

    def __cinit__(self, const uint8_t[::1] wasm not None):
        cdef Cursor whole
        self.seen = <uint32_t *>calloc(LOCALS_MAX, sizeof(uint32_t))
        self.arity = <uint16_t *>calloc(TYPES_MAX, sizeof(uint16_t))
        if self.seen == NULL or self.arity == NULL:
            raise MemoryError
        whole.at = &wasm[0] if wasm.shape[0] else NULL
        whole.end = whole.at + wasm.shape[0]
        whole.broken = False
        self._component(&whole, 0)

    def __dealloc__(self):
        free(self.seen)
        free(self.arity)

    cdef tuple _component(self, Cursor *within, int depth):
        """A component without its size. Returns: what one instance of it makes: (instances, functions that cross)."""
        cdef Cursor section
        cdef uint8_t kind
        cdef uint64_t instances = 1
        cdef uint64_t crossing = 0
        cdef uint64_t count, index
        cdef list nested = []
        if depth >= DEPTH_MAX:
            raise ComponentRefused(f"it has components within components, more than {DEPTH_MAX} deep")
        skip(within, HEADER_SIZE)
        while next_section(within, &kind, &section):
            if kind == SECTION_CORE_MODULE:
                self._module(&section)
                continue
            if kind == SECTION_COMPONENT:
                nested.append(self._component(&section, depth + 1))
                self._count(&self.modules, 1, MODULES_MAX, "modules and components")
                continue
            if kind == 0 or kind == SECTION_START:
                continue
            if kind > SECTION_EXPORT:
                raise ComponentRefused(f"it has a section of kind {kind}, which is not taken here")
            count = index_of(&section)
            self._count(&self.items, count, ITEMS_MAX, "imports, exports, aliases, types and instances")
            if kind == SECTION_TYPE:
                self.type_bytes += section.end - section.at
                self._component_types(&section, count)
            elif kind == SECTION_CANON:
                crossing += count
            elif kind == SECTION_CORE_INSTANCE or kind == SECTION_INSTANCE:
                while count and not section.broken:
                    count -= 1
                    index = read_instance(&section, kind)
                    if index == NO_COMPONENT:
                        continue
                    if kind == SECTION_CORE_INSTANCE:
                        instances += 1
                    elif index >= <uint64_t>len(nested):
                        raise ComponentRefused("it instantiates a component that is not defined in the same place")
                    else:
                        instances += nested[index][0]
                        crossing += nested[index][1]
                    if instances > INSTANCES_MAX:
                        raise ComponentRefused(f"it would make more than {INSTANCES_MAX} instances")
            elif kind == SECTION_ALIAS or kind == SECTION_IMPORT or kind == SECTION_EXPORT:
                while count and not section.broken:
                    count -= 1
                    if read_name_of(&section, kind):
                        # Which one is instantiated must be seen from here, or nobody knows how often.
                        raise ComponentRefused("it hands components around as values, which is not taken here")
            within.broken |= section.broken
            if kind != SECTION_CANON and kind != SECTION_CORE_TYPE:
                within.broken |= section.at != section.end
        if within.broken:
            raise ComponentRefused("the component is not valid: it ends in the middle of a section")
        if depth == 0:
            self.instances = instances
            self.adapters = crossing
            if nested and crossing * self.type_bytes > ADAPTER_BYTES_MAX:
                raise ComponentRefused(
                    f"{crossing} functions with {self.type_bytes} bytes of types would cross between its components: "
                    f"the product is at most {ADAPTER_BYTES_MAX}")
        return instances, crossing

    cdef int _component_types(self, Cursor *within, uint64_t count) except -1:
        cdef Declared found
        found.members = 0
        found.deep = False
        with nogil:
            while count and not within.broken:
                read_component_type(within, &found, 0)
                count -= 1
        if found.deep:
            # wasmtime reads them by a function that calls itself: 15 KB of them took the whole stack.
            raise ComponentRefused(f"it has types of interfaces within each other, more than {DEPTH_MAX} deep")
        return self._count(&self.members, found.members, MEMBERS_MAX, "members of interfaces")

    cdef int _module(self, Cursor *within) except -1:
        cdef Cursor section
        cdef uint8_t kind
        cdef uint64_t count
        self._count(&self.modules, 1, MODULES_MAX, "modules and components")
        self.arities = self.widest_type = 0
        self.widest_result = 1
        skip(within, HEADER_SIZE)
        while next_section(within, &kind, &section):
            if kind == 0 or kind == MODULE_START or kind == MODULE_DATA_COUNT:
                continue
            if kind > MODULE_SECTION_LAST:
                raise ComponentRefused(f"module {self.modules} has a section of kind {kind}, which is not taken here")
            if kind == MODULE_CODE or kind == MODULE_TYPES or kind == MODULE_TABLES:
                if kind == MODULE_CODE:
                    self._code(&section)
                elif kind == MODULE_TYPES:
                    self._types(&section)
                else:
                    self._tables(&section)
                within.broken |= section.broken or section.at != section.end
                continue
            count = index_of(&section)
            within.broken |= section.broken
            if kind == MODULE_ELEMENTS:
                self._count(&self.elements, section.end - section.at, ELEMENTS_MAX, "elements of tables")
            if kind != MODULE_FUNCTIONS:  # functions are counted with their code
                self._count(&self.items, count, ITEMS_MAX, "imports, exports, globals and segments")
        if within.broken:
            raise ComponentRefused(f"the component is not valid: module {self.modules} ends in the middle")
        return 0

    cdef int _types(self, Cursor *within) except -1:
        cdef uint64_t size = within.end - within.at
        cdef uint64_t count = index_of(within)
        cdef uint64_t params, results
        self._count(&self.types, count, TYPES_MAX, "types of functions")
        self._add_work(size * TYPE_BYTE_WORK)
        while count and not within.broken:
            count -= 1
            if byte(within) != 0x60:
                raise ComponentRefused(f"module {self.modules} has a type that is no function's")
            params = skip_types(within)
            results = skip_types(within)
            if params > PARAMS_MAX or results > RESULTS_MAX:
                raise ComponentRefused(
                    f"module {self.modules} has a function of {params} parameters and {results} results; "
                    f"{PARAMS_MAX} and {RESULTS_MAX} are the most")
            if self.arities < TYPES_MAX:  # a second section of types is not valid
                self.arity[self.arities] = <uint16_t>(params + results)
                self.arities += 1
            self.widest_result = max(self.widest_result, results)
            self.widest_type = max(self.widest_type, params + results)
        return 0

    cdef int _tables(self, Cursor *within) except -1:
        """Tables as they begin: one element at its end, and the compiler lays the whole of it out."""
        cdef uint64_t count = index_of(within)
        cdef uint64_t flags
        self._count(&self.items, count, ITEMS_MAX, "imports, exports, globals and segments")
        while count and not within.broken:
            count -= 1
            if within.at < within.end and within.at[0] == 0x40:
                raise ComponentRefused(f"module {self.modules} has a table with a first value, which is not taken here")
            skip_type(within)
            flags = index_of(within)
            self._count(&self.elements, number(within, 10), ELEMENTS_MAX, "elements of tables")
            if flags & 1:
                number(within, 10)
        return 0

    cdef int _code(self, Cursor *within) except -1:
        cdef uint64_t count = index_of(within)
        cdef uint64_t index, size, values, pairs, work
        cdef Cursor code
        cdef Body body
        self._count(&self.functions, count, FUNCTIONS_MAX, "functions")
        for index in range(count):
            size = index_of(within)
            code = part(within, size)
            if code.broken:
                within.broken = True
                return 0
            self.code += size
            body.branches = body.joins = body.loops = body.traps = body.calls = body.locals = 0
            body.targets = body.typed = body.declared = 0
            body.widest = self.widest_result
            body.unknown = -1
            # Functions of all modules have different stamps: nothing has to be cleared between them.
            with nogil:
                read_body(&code, &body, self.arity, self.arities, self.widest_type, self.seen,
                          <uint32_t>(self.functions - count + index + 1))
            values = body.locals + 2 + body.widest  # and fuel, and the epoch
            pairs = body.joins * values + (body.targets + body.calls + body.typed * body.typed // 16) * body.widest
            work = FUNCTION_WORK + size + TRAP_WORK * body.traps + LOOP_WORK * body.loops
            work += body.declared // DECLARED_PER
            work += CALL_WORK * body.calls * body.widest
            work += body.branches * body.branches // QUADRATIC_PER + pairs * values // PAIRS_PER
            if (code.broken or body.unknown >= 0 or size > CODE_MAX or body.branches > BRANCHES_MAX
                    or body.loops > LOOPS_MAX or pairs > PAIRS_MAX or work > FUNCTION_WORK_MAX):
                # Counted without the imported ones, as wasm's own tools count the code section.
                refuse(f"function {index} of module {self.modules}", size, pairs, work, &body)
            self._add_work(work)
        return 0

    cdef int _count(self, uint64_t *total, uint64_t more, uint64_t most, str what) except -1:
        total[0] += more
        if total[0] > most:
            raise ComponentRefused(f"it has {total[0]} {what}; {most} is the most that is compiled here")
        return 0

    cdef int _add_work(self, uint64_t more) except -1:
        self.work += more
        if self.work > WORK_MAX:
            raise ComponentRefused(
                f"to compile it would take longer than some {WORK_MAX // 1_000_000} s: make its functions shorter")
        return 0


cdef int refuse(str where, uint64_t size, uint64_t pairs, uint64_t work, Body *body) except -1:
    """Say what is wrong with a function. Raises: ComponentRefused: always."""
    if body.unknown >= 0:
        raise ComponentRefused(f"{where} has an instruction that is not taken here: {body.unknown:#04x}")
    for found, most, what in (
        (size, CODE_MAX, "bytes of code"),
        (body.branches, BRANCHES_MAX, "branches"),
        (body.loops, LOOPS_MAX, "loops and checked conversions"),
        (pairs, PAIRS_MAX, "branches times locals"),
        (work, FUNCTION_WORK_MAX, "microseconds of work, by its branches and locals"),
    ):
        if found > most:
            raise ComponentRefused(f"{where} has {found} {what}; {most} is the most that is compiled here")
    raise ComponentRefused(f"the component is not valid: {where} ends in the middle of an instruction")
