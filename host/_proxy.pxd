# The proxy's table of contents: constants, the three structures, and what each field is for. _connections.pxd has the
# operations on one connection's memory, _proxy.pyx the loop and the Python class.
#
#   client ── socket ── connection_t ─┬─ worker_t: data.to_enclave (we produce) ──> enclave process
#   server ──┘                        └─ worker_t: data.to_host   (we consume) <──
#
# A client's connection is accepted here and has a slot of ours; one to a server is asked for by the enclave (CONNECT), has
# a slot of its choice, and its socket is made by the connector, a thread of its own: names are looked up and connections
# awaited there, never here. connect_t carries the question out and the answer in.
#
# One thread owns all of it and never holds the GIL; Python reaches it by one command at a time (see Proxy). Sockets
# and doorbells are edge-triggered and registered once per connection: no epoll_ctl and no read of an eventfd per
# request.
#
# States of a connection, as flags (C_*). Both CLOSE flags set and no socket: the slot may be used again.
#
#   accept ─> open ── client EOF ──> SENT_EOF         no more DATA to the enclave
#                ├── enclave EOF ──> GOT_EOF          shutdown(SHUT_WR) once nothing waits in `unsent`
#                ├── enclave CLOSE ─> GOT_CLOSE       our CLOSE is owed at once; flush, shutdown, LINGER, close
#                └── reset, deadline ─> SENT_CLOSE    socket closed; waits for the enclave's CLOSE
#   CONNECT ─> CONNECTING ─┬─ socket ─> CONNECTED is owed, then open
#                          └─ none ───> SENT_CLOSE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from cpython.pythread cimport PyThread_type_lock

from enclave_os._ring cimport ring_consumer_t, ring_producer_t

cdef enum:
    WORKERS_MAX = 64              # as settings.WORKERS_MAX; tests/host/test_proxy.py holds them equal
    LISTENERS_MAX = 64            # as the bound of settings.Server.listen
    FRONTS_MAX = 16               # as the bound of settings.Server.proxy_protocol_from
    CHUNK_BITS = 8                # slots come in chunks of 256, which never move: 28 KiB each
    CHUNK_SLOTS = 256
    CHUNKS_MAX = 4096             # CHUNKS_MAX * CHUNK_SLOTS == 1 << CONN_SLOT_BITS
    GENERATION_MAX = 0x7FF
    EVENTS_PER_TURN_MAX = 256
    ACCEPTS_PER_TURN_MAX = 64
    READS_PER_TURN_MAX = 256
    READS_OF_ONE_MAX = 8          # of one connection in a turn: 128 KiB, before a PAUSE that waits for us is looked at
    SEND_RECORDS_MAX = 16         # records of one connection that go out by one sendmsg
    QUICKACK_READS = 4            # ClientHello (twice after a HelloRetryRequest), Finished, first request
    REFUSALS_MAX = 256            # answers to CONNECT that wait for room
    EGRESS_SLOTS = 4096           # as egress_settings.EGRESS_CONNECTIONS_MAX; tests/host/test_proxy_connect.py holds it
    CONNECTS_MAX = 16384          # questions that wait for the connector; more are answered CLOSE(LIMIT)
    CONNECT_HOST_SIZE_MAX = 259   # CONNECT_TARGET_SIZE_MAX less the deadline
    CONTROL_TAG = 0xFFFF0000      # epoll tags above every worker's index
    DOORBELL_TAG = 0xFFFF0001
    LISTENER_TAG = 0xFFFF0002

# Connection flags.
cdef enum:
    C_SENT_EOF = 1
    C_GOT_EOF = 2
    C_SENT_CLOSE = 4              # CLOSE is in the ring
    C_GOT_CLOSE = 8
    C_READABLE = 16               # the kernel may have bytes or an end for us (edge seen, not yet used up)
    C_HANGUP = 32                 # the client's FIN or a reset was seen: a short read is not the last one
    C_STOPPED = 64                # the enclave sent PAUSE: do not read the socket
    C_PAUSED = 128                # we sent or owe PAUSE: the client is slow
    C_LINGER = 256                # our FIN is out; what the client still sends is thrown away
    C_SHUT = 512                  # shutdown(SHUT_WR) was called
    C_OUT_EDGE = 1024             # EPOLLOUT is registered
    C_IN_READY = 2048             # queued in worker.ready
    C_IN_OWED = 4096              # queued in worker.owed
    C_EGRESS = 8192               # to a server: the enclave chose the slot, and egress_t holds it
    C_CONNECTING = 16384          # the connector has not answered
    C_FRONT = 32768               # of a front, whose header has not come: the enclave has not heard of it

# Frames that a connection owes the enclave, kept as bits so that a full ring can never make us queue more.
cdef enum:
    OWE_EOF = 1
    OWE_CLOSE = 2
    OWE_PAUSE = 4
    OWE_RESUME = 8
    OWE_CONNECTED = 16            # before everything else

# Deadline lists.
cdef enum:
    DEADLINE_NONE = -1
    DEADLINE_IDLE = 0             # no byte either way
    DEADLINE_STALL = 1            # bytes wait in `unsent` and the client takes none
    DEADLINE_LINGER = 2           # our FIN is out and the client's has not come
    DEADLINE_FRONT = 3            # a front owes the header
    DEADLINES = 4

cdef enum:
    W_STARTING = 0                # attached; nothing is accepted for it
    W_READY = 1
    W_BROKEN = 2                  # lied: its rings are not touched again

# Events for the supervisor, one bit each, so that none can be lost and none can pile up.
cdef enum:
    EVENT_READY = 1
    EVENT_DRAINED = 2
    EVENT_BROKEN = 4

cdef enum:
    COMMAND_NONE = 0
    COMMAND_ADD = 1
    COMMAND_DETACH = 2
    COMMAND_DRAIN = 3
    COMMAND_STOP = 4

cdef struct connection_t:
    int fd                        # -1: no socket
    uint32_t conn_id              # slot | generation << CONN_SLOT_BITS; of the present or the last use
    uint16_t flags
    uint16_t close_reason         # of the CLOSE that we owe
    uint8_t owed
    uint8_t reads                 # counted up to QUICKACK_READS
    signed char deadline          # DEADLINE_*: the list it is in
    uint32_t unsent_start         # bytes of `unsent` that went out
    uint32_t unsent_end
    uint32_t unsent_room
    uint8_t *unsent               # owned; NULL unless the client is slow
    uint64_t active_ns            # when it was last put at the end of its deadline list
    connection_t *deadline_before
    connection_t *deadline_after
    connection_t *ready_next
    connection_t *owed_next       # also the free list
    worker_t *worker

cdef struct egress_t:
    connection_t connection       # first, so that a pointer to one is a pointer to the other
    uint32_t address_size
    char address[64]              # reached, for CONNECTED

cdef struct connect_t:            # a question to the connector (size 0: never mind), or its answer
    connect_t *next
    uint32_t worker
    uint32_t life
    uint32_t conn_id
    uint32_t deadline_ms
    uint32_t reason               # of a failure
    int fd                        # the answer's socket, owned, or -1
    uint32_t size
    char text[259]                # host:port, or the address reached

cdef struct connects_t:           # under `lock`: the loop's thread and the connector's
    connect_t *first
    connect_t *last
    uint32_t count

cdef struct queue_t:
    connection_t *first
    connection_t *last

cdef struct worker_t:
    ring_producer_t to_enclave
    ring_consumer_t to_host
    int enclave_doorbell          # borrowed eventfd: we write
    int host_doorbell             # borrowed eventfd, or pipe (see `text`): in our epoll
    int rpc_doorbell              # of a pipe: borrowed eventfd of the dispatcher, which the pipe rings too
    int text                      # of a pipe: where what is no ring goes; -1: host_doorbell is an eventfd
    uint32_t index
    uint32_t life                 # distinguishes successive workers of one index in epoll tags
    int state
    bint ring_owed                # the enclave is owed a ring of its doorbell
    bint blocked                  # data.to_enclave is full
    bint behind                   # a turn's frames were not all that data.to_host held: no socket is read, until
    uint64_t behind_until         # data.to_host was consumed to here
    bint armed
    bint drain_owed               # DRAIN must still be put in the ring
    bint drain_sent
    bint drain_got
    uint32_t live                 # slots in use
    uint32_t flushing             # connections with bytes in `unsent`
    uint32_t slots                # slots that exist
    uint32_t refusals
    uint32_t refusal[REFUSALS_MAX]    # egress conn_ids that are owed CLOSE and have no slot
    uint16_t refusal_reason[REFUSALS_MAX]
    egress_t **egress             # EGRESS_SLOTS pointers, from the first CONNECT on
    uint32_t egress_live
    uint64_t events               # EVENT_* not yet fetched; atomic
    connection_t *free_slots
    queue_t ready                 # may have something to read
    queue_t owed                  # owe frames
    connection_t **chunk          # CHUNKS_MAX pointers

cdef struct counters_t:           # written by the proxy thread, read by any; all free-running
    uint64_t accepted
    uint64_t refused              # beyond connections_max, closed at once
    uint64_t shed                 # no descriptor or memory left, closed at once
    uint64_t accept_errors
    uint64_t closed               # slots given back
    uint64_t bytes_to_enclave
    uint64_t bytes_to_clients
    uint64_t frames_to_enclave
    uint64_t frames_to_host
    uint64_t doorbells            # written
    uint64_t sleeps               # epoll_wait calls that may block
    uint64_t turns
    uint64_t receives
    uint64_t sends
    uint64_t partial_sends
    uint64_t pauses               # PAUSE put in a ring
    uint64_t resumes
    uint64_t full                 # times that data.to_enclave became full
    uint64_t dropped_frames       # for no connection, or after its end
    uint64_t resets               # clients gone without an end
    uint64_t timeouts
    uint64_t bad_fronts           # connections of fronts without a header that can be read
    uint64_t floods
    uint64_t broken
    uint64_t connects             # CONNECTs taken
    uint64_t connected
    uint64_t connects_failed      # answered CLOSE, for whatever reason

cdef struct front_t:
    uint8_t address[16]           # a network of fronts: IPv6, or IPv4 as ::ffff:a.b.c.d
    uint32_t bits                 # of its prefix, 0 .. 128

cdef struct deadline_list_t:
    uint64_t after_ns
    connection_t *first
    connection_t *last

cdef struct proxy_t:
    int epoll
    int control                   # eventfd: a command waits
    int answer                    # eventfd: the command was done
    int event                     # eventfd: a worker has events
    int reserve                   # spare descriptor, given up to accept and close when there is none left
    int listener[LISTENERS_MAX]
    bint listener_ready[LISTENERS_MAX]
    uint32_t listeners
    front_t front[FRONTS_MAX]
    uint32_t fronts
    bint accepting
    bint draining
    bint stopping
    uint32_t workers_high         # one above the highest index in use
    uint32_t next_worker          # where the search for the least loaded starts: spreads ties
    uint32_t next_life
    worker_t *worker[WORKERS_MAX]
    uint32_t connections          # clients' slots in use, all workers
    uint32_t egress               # servers' slots in use, all workers
    uint32_t egress_max           # of one worker; 0: CONNECT is refused
    PyThread_type_lock lock       # over the two lists below, held for a few instructions
    connects_t asked              # by the loop
    connects_t answered           # by the connector
    int asked_bell                # eventfd: the connector sleeps on it
    uint32_t sockets              # open, all workers
    uint32_t unsent_connections
    uint64_t unsent_bytes
    uint32_t connections_max
    uint32_t read_size            # bytes
    uint32_t pause_above          # bytes in `unsent`
    uint32_t resume_below
    uint64_t spin_ns
    uint64_t now_ns
    uint64_t accept_again_ns      # 0, or no accept before: descriptors or memory ran out
    uint64_t command              # COMMAND_*; atomic: Python sets it, the loop takes it
    uint32_t command_index
    worker_t *command_worker
    int command_result            # 0 or an errno
    uint64_t running              # atomic: whether the loop takes commands
    bint forwarded                # this turn put DATA in a ring
    bint more                     # this turn left work that needs no event
    deadline_list_t deadline[DEADLINES]
    counters_t count
