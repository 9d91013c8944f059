# The only file that declares llhttp (third_party/llhttp).
# Its HTTP_REQUEST and methods are LLHTTP_ here, since HTTP_REQUEST is a word of our own parser.
from libc.stdint cimport uint8_t, uint16_t, uint64_t

cdef extern from "llhttp.h" nogil:
    ctypedef struct llhttp_t:
        void *data
        void *settings
        uint64_t content_length
        uint8_t type
        uint8_t method
        uint8_t http_major
        uint8_t http_minor
        uint16_t flags

    ctypedef struct llhttp_settings_t:
        int (*on_headers_complete)(llhttp_t *) noexcept
        int (*on_message_complete)(llhttp_t *) noexcept
        int (*on_chunk_header)(llhttp_t *) noexcept

    enum:
        LLHTTP_REQUEST "HTTP_REQUEST"
        HPE_OK
        HPE_INVALID_METHOD
        HPE_INVALID_VERSION
        HPE_PAUSED
        F_CHUNKED
        F_CONTENT_LENGTH
        LLHTTP_DELETE "HTTP_DELETE"
        LLHTTP_GET "HTTP_GET"
        LLHTTP_HEAD "HTTP_HEAD"
        LLHTTP_POST "HTTP_POST"
        LLHTTP_PUT "HTTP_PUT"
        LLHTTP_OPTIONS "HTTP_OPTIONS"
        LLHTTP_PATCH "HTTP_PATCH"

    void llhttp_init(llhttp_t *parser, int type, const llhttp_settings_t *settings)
    void llhttp_reset(llhttp_t *parser)
    void llhttp_settings_init(llhttp_settings_t *settings)
    int llhttp_execute(llhttp_t *parser, const char *data, size_t size)
    void llhttp_resume(llhttp_t *parser)
    const char *llhttp_get_error_pos(const llhttp_t *parser)
