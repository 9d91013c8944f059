# The system calls of the proxy, and the few lines about sockets that need nothing else.
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf

from enclave_os._limits cimport PEER_ADDRESS_SIZE_MAX

cdef extern from "<sys/socket.h>" nogil:
    int SOL_SOCKET, SO_LINGER, SHUT_WR, SOCK_NONBLOCK, SOCK_CLOEXEC, MSG_NOSIGNAL, MSG_TRUNC, MSG_PEEK, AF_INET, AF_INET6
    struct sockaddr:
        uint16_t sa_family
    struct sockaddr_storage:
        uint16_t ss_family
    struct linger_t "linger":
        int l_onoff
        int l_linger
    struct iovec_t "iovec":
        void *iov_base
        size_t iov_len
    struct msghdr_t "msghdr":
        iovec_t *msg_iov
        size_t msg_iovlen
    int accept4(int fd, sockaddr *address, unsigned int *size, int flags)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)
    ssize_t sendmsg(int fd, const msghdr_t *message, int flags)
    int getpeername(int fd, sockaddr *address, unsigned int *size)
    int setsockopt(int fd, int level, int option, const void *value, unsigned int size)
    int shutdown(int fd, int how)

cdef extern from "<netinet/tcp.h>" nogil:
    int IPPROTO_TCP, TCP_QUICKACK

cdef extern from "<arpa/inet.h>" nogil:
    struct in_addr_t_ "in_addr":
        pass
    struct in6_addr_t "in6_addr":
        pass
    struct sockaddr_in_t "sockaddr_in":
        uint16_t sin_port
        in_addr_t_ sin_addr
    struct sockaddr_in6_t "sockaddr_in6":
        uint16_t sin6_port
        in6_addr_t sin6_addr
    const char *inet_ntop(int family, const void *address, char *text, unsigned int size)
    uint16_t ntohs(uint16_t port)

cdef extern from "<sys/epoll.h>" nogil:
    int EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC
    enum:
        EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP
    uint32_t EPOLLET
    union epoll_data_t:
        uint64_t u64
    struct epoll_event_t "epoll_event":
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event_t *event)
    int epoll_wait(int epoll, epoll_event_t *events, int count, int timeout)

cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned int value, int flags)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void *buffer, size_t size)
    ssize_t write(int fd, const void *buffer, size_t size)

cdef extern from "<fcntl.h>" nogil:
    int O_RDONLY, O_CLOEXEC
    int open(const char *path, int flags)

cdef extern from "<poll.h>" nogil:
    short POLLIN
    struct pollfd_t "pollfd":
        int fd
        short events
    int poll(pollfd_t *fds, unsigned long count, int timeout)


cdef inline void write_one(int fd) noexcept nogil:
    # An eventfd refuses only when its counter is about to overflow, and then it is awake anyway.
    cdef uint64_t one = 1
    if write(fd, &one, sizeof(one)) < 0:
        pass

cdef inline void refuse(int fd) noexcept nogil:
    cdef linger_t linger
    linger.l_onoff = 1
    linger.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger))
    close(fd)

cdef inline uint32_t address_text(const sockaddr_storage *address, char *text, uint32_t size) noexcept nogil:
    # "192.0.2.1:443" or "[2001:db8::1]:443"; "?" for a family that we do not listen on.
    cdef char name[PEER_ADDRESS_SIZE_MAX]
    cdef const sockaddr_in_t *v4 = <const sockaddr_in_t *>address
    cdef const sockaddr_in6_t *v6 = <const sockaddr_in6_t *>address
    cdef int written = 0
    if address.ss_family == AF_INET and inet_ntop(AF_INET, &v4.sin_addr, name, sizeof(name)) != NULL:
        written = snprintf(text, size, "%s:%u", name, <unsigned int>ntohs(v4.sin_port))
    elif address.ss_family == AF_INET6 and inet_ntop(AF_INET6, &v6.sin6_addr, name, sizeof(name)) != NULL:
        written = snprintf(text, size, "[%s]:%u", name, <unsigned int>ntohs(v6.sin6_port))
    if written <= 0 or <uint32_t>written >= size:
        text[0] = b"?"
        return 1
    return <uint32_t>written
