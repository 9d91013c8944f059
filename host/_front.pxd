# Connections of a layer-4 front (HAProxy, Caddy, a cloud's load balancer): a PROXY protocol header, version 2, comes
# before the client's first byte and says whom the front took the connection from.
# (https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt, section 2.2)
#
#   0x00  12 bytes signature        0x0d  u8 family << 4 | transport
#   0x0c  u8 version << 4 | command 0x0e  u16 BE size of what follows: addresses, then TLVs that we throw away
#
# Only the fronts that the configuration names are asked for one, and they must send one: a client that could choose
# whether to send a header could choose its address. What it says is the front's word; the enclave is told so.
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from host._proxy cimport front_t, proxy_t
from host._sockets cimport (
    AF_INET, AF_INET6, sockaddr_in6_t, sockaddr_in_t, sockaddr_storage,
)

cdef enum:
    FRONT_HEADER_SIZE = 16
    FRONT_SIZE_MAX = 1024         # of a whole header; addresses take 52 bytes, the TLVs of HAProxy some 200
    FRONT_WAIT = 0                # not all of it is here
    FRONT_BAD = -1                # no header, or one that is not for a TCP connection

cdef inline void mapped(const sockaddr_storage *address, uint8_t *to) noexcept nogil:
    # 16 bytes: an IPv6 address, or an IPv4 one as ::ffff:a.b.c.d. All zero for another family.
    cdef const sockaddr_in_t *v4 = <const sockaddr_in_t *>address
    cdef const sockaddr_in6_t *v6 = <const sockaddr_in6_t *>address
    memset(to, 0, 16)
    if address.ss_family == AF_INET:
        to[10] = to[11] = 0xFF
        memcpy(to + 12, &v4.sin_addr, 4)
    elif address.ss_family == AF_INET6:
        memcpy(to, &v6.sin6_addr, 16)

cdef inline bint is_front(const proxy_t *p, const sockaddr_storage *address) noexcept nogil:
    cdef uint8_t peer[16]
    cdef uint32_t i, whole, rest
    cdef const front_t *front
    if not p.fronts:
        return False
    mapped(address, peer)
    for i in range(p.fronts):
        front = &p.front[i]
        whole, rest = front.bits >> 3, front.bits & 7
        if memcmp(peer, front.address, whole):
            continue
        if not rest or (peer[whole] ^ front.address[whole]) >> (8 - rest) == 0:
            return True
    return False

cdef inline int front_parse(const uint8_t *data, uint32_t got, sockaddr_storage *source) noexcept nogil:
    # The header's whole size, FRONT_WAIT or FRONT_BAD. `source` is written when the header names one, and else left as
    # it is: a health check of the front's own (LOCAL), or a connection of unknown kind (UNSPEC).
    cdef const uint8_t *signature = b"\r\n\r\n\x00\r\nQUIT\n"
    cdef sockaddr_in_t *v4 = <sockaddr_in_t *>source
    cdef sockaddr_in6_t *v6 = <sockaddr_in6_t *>source
    cdef uint32_t size
    if memcmp(data, signature, got if got < 12 else 12):
        return FRONT_BAD
    if got < FRONT_HEADER_SIZE:
        return FRONT_WAIT
    size = FRONT_HEADER_SIZE + (<uint32_t>data[14] << 8 | data[15])
    if size > FRONT_SIZE_MAX or (data[12] != 0x20 and data[12] != 0x21):
        return FRONT_BAD
    if got < size:
        return FRONT_WAIT
    if data[12] == 0x20 or data[13] == 0x00:
        return <int>size
    if data[13] == 0x11 and size >= FRONT_HEADER_SIZE + 12:
        memset(source, 0, sizeof(sockaddr_storage))
        source.ss_family = AF_INET
        memcpy(&v4.sin_addr, data + 16, 4)
        memcpy(&v4.sin_port, data + 24, 2)
        return <int>size
    if data[13] == 0x21 and size >= FRONT_HEADER_SIZE + 36:
        memset(source, 0, sizeof(sockaddr_storage))
        source.ss_family = AF_INET6
        memcpy(&v6.sin6_addr, data + 16, 16)
        memcpy(&v6.sin6_port, data + 48, 2)
        return <int>size
    return FRONT_BAD
