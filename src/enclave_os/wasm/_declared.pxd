# What a component declares: instances, names and types, read for counting (`_scan`).
#
# Each function reads one whole thing, and stops where the bytes end; types and their members call each other, so depth
# is bounded by DEPTH_MAX.
from libc.stdint cimport uint8_t, uint64_t

from enclave_os.wasm._bytes cimport Cursor, byte, index_of, skip, skip_signed, skip_type

cdef enum:
    DEPTH_MAX = 16                  # components within components, and types of both; toolchains make 2 levels
    COMPONENT_SORT = 4
    NO_COMPONENT = 0xFFFF_FFFF
    # Sections of a component.
    SECTION_CORE_MODULE = 1
    SECTION_CORE_INSTANCE = 2
    SECTION_CORE_TYPE = 3
    SECTION_COMPONENT = 4
    SECTION_INSTANCE = 5
    SECTION_ALIAS = 6
    SECTION_TYPE = 7
    SECTION_CANON = 8
    SECTION_START = 9
    SECTION_IMPORT = 10
    SECTION_EXPORT = 11


cdef struct Declared:
    uint64_t members                # of types of instances and components
    bint deep                       # more than may be within each other


cdef inline uint64_t skip_types(Cursor *c) noexcept nogil:
    """A vector of value types. Returns: how many."""
    cdef uint64_t count = index_of(c)
    cdef uint64_t left = count
    while left and not c.broken:
        skip_type(c)
        left -= 1
    return count


cdef inline uint8_t read_sort(Cursor *c) noexcept nogil:
    """A sort, of core things with which. Returns: it; 0: a core one."""
    cdef uint8_t sort = byte(c)
    if sort == 0:
        byte(c)
    return sort


cdef inline uint8_t read_sorted(Cursor *c) noexcept nogil:
    """A sort and an index. Returns: the sort."""
    cdef uint8_t sort = read_sort(c)
    index_of(c)
    return sort


cdef inline uint64_t read_instance(Cursor *c, uint8_t section) noexcept nogil:
    """One instance, core or not. Returns: what is instantiated; NO_COMPONENT: it only gathers what is there."""
    cdef uint8_t kind = byte(c)
    cdef uint64_t found = NO_COMPONENT
    cdef uint64_t count
    c.broken |= kind > 1
    if kind == 0:
        found = index_of(c)
    count = index_of(c)
    while count and not c.broken:
        if kind == 1 and section == SECTION_INSTANCE:
            c.broken |= byte(c) > 1
        skip(c, index_of(c))
        if section == SECTION_CORE_INSTANCE:
            byte(c)
            index_of(c)
        else:
            read_sorted(c)
        count -= 1
    return found


cdef inline bint read_described(Cursor *c) noexcept nogil:
    """A type of an import or export. Returns: whether it is a component's."""
    cdef uint8_t kind = byte(c)
    if kind == 0:
        c.broken |= byte(c) != 0x11
        index_of(c)
    elif kind == 3:
        if byte(c) == 0:
            index_of(c)
    elif kind == 1 or kind == COMPONENT_SORT or kind == 5:
        index_of(c)
    else:
        c.broken = True
    return kind == COMPONENT_SORT


cdef inline void skip_payload(Cursor *c) noexcept nogil:
    """A value type, or none."""
    if byte(c):
        skip_signed(c)


cdef inline void read_component_type(Cursor *c, Declared *found, int depth) noexcept nogil:
    """One type of a component's: of a value, function, resource, instance or component."""
    cdef uint8_t kind = byte(c)
    cdef uint64_t count
    if 0x73 <= kind <= 0x7F:
        return
    if kind == 0x68 or kind == 0x69 or kind == 0x6B or kind == 0x70:
        skip_signed(c)
    elif kind == 0x6A:
        skip_payload(c)
        skip_payload(c)
    elif kind == 0x3F:
        byte(c)
        skip_payload(c)
    elif kind == 0x41 or kind == 0x42 or kind == 0x40 or 0x6D <= kind <= 0x72:
        if depth >= DEPTH_MAX:
            found.deep = c.broken = True
        count = index_of(c)
        if kind == 0x41 or kind == 0x42:
            found.members += count
        while count and not c.broken:
            count -= 1
            if kind == 0x41 or kind == 0x42:
                read_declared(c, found, depth + 1)
                continue
            if kind != 0x6F:
                skip(c, index_of(c))  # a name
            if kind == 0x40 or kind == 0x6F or kind == 0x72:
                skip_signed(c)
            elif kind == 0x71:
                skip_payload(c)
                c.broken |= byte(c) != 0
        if kind == 0x40:
            if byte(c) == 0:
                skip_signed(c)
            else:
                c.broken |= byte(c) != 0
    else:
        c.broken = True


cdef inline void read_declared(Cursor *c, Declared *found, int depth) noexcept nogil:
    """One member of an instance's or component's type."""
    cdef uint8_t kind = byte(c)
    if kind == 0:
        c.broken |= byte(c) != 0x60
        skip_types(c)
        skip_types(c)
    elif kind == 1:
        read_component_type(c, found, depth)
    elif kind == 2:
        read_name_of(c, SECTION_ALIAS)
    elif kind == 3 or kind == 4:
        c.broken |= byte(c) > 1
        skip(c, index_of(c))
        read_described(c)
    else:
        c.broken = True


cdef inline bint read_name_of(Cursor *c, uint8_t section) noexcept nogil:
    """One alias, import or export. Returns: whether it is a component's."""
    cdef uint8_t sort, target
    cdef bint component
    if section == SECTION_ALIAS:
        sort = read_sort(c)
        target = byte(c)
        index_of(c)
        if target <= 1:
            skip(c, index_of(c))
        elif target == 2:
            index_of(c)
        else:
            c.broken = True
        return sort == COMPONENT_SORT
    c.broken |= byte(c) > 1
    skip(c, index_of(c))
    if section == SECTION_IMPORT:
        return read_described(c)
    sort = read_sorted(c)
    target = byte(c)
    c.broken |= target > 1
    component = target == 1 and read_described(c)
    return component or sort == COMPONENT_SORT
