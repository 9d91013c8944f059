/* Outgoing TCP on wasi:sockets 0.2, blocking, by hand: connect, write, read, close. A call's deadline bounds every wait.
 * What goes over it is not protected: the host carries it, and may read and change it. Speak TLS over it, or use
 * privasys:enclave-os/https. */
#ifndef TCP_H
#define TCP_H

#include "component.h"

#define NET(interface, name) IMPORT("wasi:sockets/" interface "@0.2.0", name)
#define IO(interface, name) IMPORT("wasi:io/" interface "@0.2.0", name)

/* result<own<T>, error-code>, result<bool, ...>, result<_, ...>, result<T, stream-error> as they lie in memory. */
typedef struct { uint8_t is_err; union { uint32_t handle; uint8_t code; } value; } net_handle;
typedef struct { uint8_t is_err, code; } net_done;
typedef struct { uint8_t is_err; union { struct { uint32_t input, output; } streams; uint8_t code; } value; } net_streams;
typedef struct { uint8_t is_err; struct { uint8_t some; struct { uint8_t ipv6; union {
    uint8_t v4[4]; uint16_t v6[8]; } at; } address __attribute__((aligned(2))); } value __attribute__((aligned(2))); } net_next;
typedef struct { uint8_t closed; uint32_t error; } io_error;
typedef struct { uint8_t is_err; union { bytes data; io_error error; } value; } io_bytes;
typedef struct { uint8_t is_err; io_error error; } io_done;
typedef struct { uint8_t is_err; union { uint64_t room; io_error error; } value; } io_room;

NET("instance-network", "instance-network") uint32_t net_instance(void);
NET("ip-name-lookup", "resolve-addresses") void net_resolve(uint32_t, const uint8_t *, uint32_t, net_handle *);
NET("ip-name-lookup", "[method]resolve-address-stream.resolve-next-address") void net_next_address(uint32_t, net_next *);
NET("ip-name-lookup", "[resource-drop]resolve-address-stream") void net_drop_resolver(uint32_t);
NET("tcp-create-socket", "create-tcp-socket") void tcp_create(uint32_t, net_handle *);
NET("tcp", "[method]tcp-socket.start-connect") void tcp_start_connect(
    uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t,
    uint32_t, uint32_t, uint32_t, net_done *);
NET("tcp", "[method]tcp-socket.finish-connect") void tcp_finish_connect(uint32_t, net_streams *);
NET("tcp", "[method]tcp-socket.subscribe") uint32_t tcp_subscribe(uint32_t);
NET("tcp", "[method]tcp-socket.shutdown") void tcp_shutdown(uint32_t, uint32_t, net_done *);
NET("tcp", "[resource-drop]tcp-socket") void tcp_drop(uint32_t);
IO("poll", "[method]pollable.block") void pollable_block(uint32_t);
IO("poll", "[resource-drop]pollable") void pollable_drop(uint32_t);
IO("streams", "[method]input-stream.blocking-read") void input_read(uint32_t, uint64_t, io_bytes *);
IO("streams", "[method]output-stream.blocking-write-and-flush") void output_write(uint32_t, const uint8_t *, uint32_t, io_done *);
IO("streams", "[resource-drop]input-stream") void input_drop(uint32_t);
IO("streams", "[resource-drop]output-stream") void output_drop(uint32_t);

enum { TCP_WRITE_MAX = 4096, TCP_READ_MAX = 65536, TCP_SEND = 1 };
enum { NET_OK = -1, NET_UNKNOWN = 0, NET_TIMEOUT = 5, NET_WOULD_BLOCK = 8, NET_RESET = 15 }; /* of error-code */

static const char *const net_names[] = {
    "unknown", "access-denied", "not-supported", "invalid-argument", "out-of-memory", "timeout", "concurrency-conflict",
    "not-in-progress", "would-block", "invalid-state", "new-socket-limit", "address-not-bindable", "address-in-use",
    "remote-unreachable", "connection-refused", "connection-reset", "connection-aborted", "datagram-too-large",
    "name-unresolvable", "temporary-resolver-failure", "permanent-resolver-failure",
};

typedef struct { uint32_t socket, input, output; } tcp;
typedef struct { uint8_t ipv6; uint16_t part[8]; } net_address;

static uint32_t net_handle_of(void) {
    static uint32_t network, known;
    if (!known) { network = net_instance(); known = 1; }
    return network;
}

/* Look a name up. NET_OK, or an error-code. */
static int net_lookup(const uint8_t *name, uint32_t size, net_address *found) {
    net_handle resolver;
    net_next next;
    net_resolve(net_handle_of(), name, size, &resolver);
    if (resolver.is_err) return resolver.value.code;
    net_next_address(resolver.value.handle, &next);
    net_drop_resolver(resolver.value.handle);
    if (next.is_err || !next.value.some) return NET_UNKNOWN;
    found->ipv6 = next.value.address.ipv6;
    for (int part = 0; part < (found->ipv6 ? 8 : 4); part++)
        found->part[part] = found->ipv6 ? next.value.address.at.v6[part] : next.value.address.at.v4[part];
    return NET_OK;
}

static int tcp_begin(uint32_t socket, const net_address *to, uint16_t port) {
    net_done begun;
    const uint16_t *p = to->part;
    if (to->ipv6)
        tcp_start_connect(socket, net_handle_of(), 1, port, 0, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], 0, &begun);
    else
        tcp_start_connect(socket, net_handle_of(), 0, port, p[0], p[1], p[2], p[3], 0, 0, 0, 0, 0, 0, &begun);
    return begun.is_err ? begun.code : NET_OK;
}

/* Wait for a connection that was begun. */
static int tcp_connected(tcp *made) {
    net_streams streams;
    uint32_t waiting = tcp_subscribe(made->socket);
    pollable_block(waiting);
    pollable_drop(waiting);
    tcp_finish_connect(made->socket, &streams);
    if (streams.is_err) return streams.value.code;
    made->input = streams.value.streams.input;
    made->output = streams.value.streams.output;
    return NET_OK;
}

/* Connect to a name or an address. NET_OK, or an error-code; then nothing is left open. */
static int tcp_connect(const uint8_t *host, uint32_t size, uint16_t port, tcp *made) {
    net_address address;
    net_handle socket;
    int failed = net_lookup(host, size, &address);
    if (failed != NET_OK) return failed;
    tcp_create(address.ipv6, &socket);
    if (socket.is_err) return socket.value.code;
    made->socket = socket.value.handle;
    failed = tcp_begin(made->socket, &address, port);
    if (failed == NET_OK) failed = tcp_connected(made);
    if (failed != NET_OK) tcp_drop(made->socket);
    return failed;
}

/* Send all of it; not 0: the connection is gone. */
static int tcp_write(const tcp *to, const uint8_t *data, uint32_t size) {
    while (size) {
        uint32_t piece = size < TCP_WRITE_MAX ? size : TCP_WRITE_MAX;
        io_done done;
        output_write(to->output, data, piece, &done);
        if (done.is_err) return 1;
        data += piece;
        size -= piece;
    }
    return 0;
}

/* Nothing more is written: the server sees the end. */
static int tcp_end(const tcp *of) {
    net_done done;
    tcp_shutdown(of->socket, TCP_SEND, &done);
    return done.is_err;
}

/* What came, at least one byte: 0; at the end 1; where the connection is gone 2. */
static int tcp_read(const tcp *from, bytes *got) {
    io_bytes read;
    input_read(from->input, TCP_READ_MAX, &read);
    if (read.is_err) return read.value.error.closed ? 1 : 2;
    *got = read.value.data;
    return 0;
}

static void tcp_close(const tcp *one) {
    input_drop(one->input);
    output_drop(one->output);
    tcp_drop(one->socket);
}

#endif
