# The only file that declares OpenSSL symbols (3.0 or later, the system's libssl and libcrypto).
#
# The process shares one libssl with the `ssl` module of the standard library, so nothing here may change global state:
# no configuration, no engines, no providers, and the error queue of the thread is left clean after every operation.
from libc.stdint cimport uint32_t, uint64_t
from posix.types cimport time_t

cdef extern from *:
    """
    /* EC_KEY and EC_KEY_METHOD are deprecated in 3.0 and have no successor that is as fast: see LeafMinter. */
    #define OPENSSL_SUPPRESS_DEPRECATED
    """

cdef extern from "openssl/crypto.h" nogil:
    void OPENSSL_free(void *address)
    int OPENSSL_init_crypto(uint64_t options, const void *settings)
    uint64_t OPENSSL_INIT_NO_LOAD_CONFIG
    const char *OpenSSL_version(int kind)
    int CRYPTO_memcmp(const void *one, const void *other, size_t size)
    void OPENSSL_cleanse(void *memory, size_t size)
    int OPENSSL_VERSION

cdef extern from "openssl/err.h" nogil:
    unsigned long ERR_peek_error()
    void ERR_clear_error()
    const char *ERR_reason_error_string(unsigned long code)

cdef extern from "openssl/rand.h" nogil:
    int RAND_bytes(unsigned char *to, int size)

cdef extern from "openssl/sha.h" nogil:
    ctypedef struct SHA256_CTX:
        pass
    int SHA256_Init(SHA256_CTX *state)
    int SHA256_Update(SHA256_CTX *state, const void *data, size_t size)
    int SHA256_Final(unsigned char *digest, SHA256_CTX *state)

cdef extern from "openssl/asn1.h" nogil:
    ctypedef struct ASN1_OBJECT:
        pass

cdef extern from "openssl/objects.h" nogil:
    int NID_X9_62_prime256v1
    const char *OBJ_nid2sn(int nid)

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_PKEY:
        pass
    ctypedef struct EVP_PKEY_CTX:
        pass
    ctypedef struct EVP_MD:
        pass
    ctypedef struct EVP_MD_CTX:
        pass
    ctypedef struct ENGINE:
        pass
    int EVP_PKEY_EC
    int EVP_PKEY_get_base_id(const EVP_PKEY *key)
    const EVP_MD *EVP_sha256()
    EVP_PKEY *EVP_PKEY_new()
    void EVP_PKEY_free(EVP_PKEY *key)
    int EVP_PKEY_get_group_name(const EVP_PKEY *key, char *name, size_t room, size_t *size)
    size_t EVP_PKEY_get1_encoded_public_key(EVP_PKEY *key, unsigned char **point)
    EVP_PKEY_CTX *EVP_PKEY_CTX_new(EVP_PKEY *key, ENGINE *engine)
    void EVP_PKEY_CTX_free(EVP_PKEY_CTX *context)
    int EVP_PKEY_sign_init(EVP_PKEY_CTX *context)
    int EVP_PKEY_sign(EVP_PKEY_CTX *context, unsigned char *signature, size_t *size, const unsigned char *digest,
                      size_t digest_size)
    int EVP_PKEY_assign(EVP_PKEY *key, int kind, void *inner)

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_CIPHER_CTX:
        pass
    const EVP_CIPHER *EVP_aes_256_gcm()
    EVP_CIPHER_CTX *EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *context)
    int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *context, int command, int size, void *data)
    int EVP_CTRL_AEAD_GET_TAG
    int EVP_CTRL_AEAD_SET_TAG
    int EVP_EncryptInit_ex(EVP_CIPHER_CTX *context, const EVP_CIPHER *cipher, ENGINE *engine, const unsigned char *key,
                           const unsigned char *nonce)
    int EVP_EncryptUpdate(EVP_CIPHER_CTX *context, unsigned char *out, int *out_size, const unsigned char *data, int size)
    int EVP_EncryptFinal_ex(EVP_CIPHER_CTX *context, unsigned char *out, int *out_size)
    int EVP_DecryptInit_ex(EVP_CIPHER_CTX *context, const EVP_CIPHER *cipher, ENGINE *engine, const unsigned char *key,
                           const unsigned char *nonce)
    int EVP_DecryptUpdate(EVP_CIPHER_CTX *context, unsigned char *out, int *out_size, const unsigned char *data, int size)
    int EVP_DecryptFinal_ex(EVP_CIPHER_CTX *context, unsigned char *out, int *out_size)

cdef extern from "openssl/ec.h" nogil:
    ctypedef struct EC_GROUP:
        pass
    ctypedef struct EC_KEY:
        pass
    ctypedef struct EC_KEY_METHOD:
        pass
    EC_GROUP *EC_GROUP_new_by_curve_name(int nid)
    void EC_GROUP_free(EC_GROUP *group)
    EC_KEY *EC_KEY_new()
    void EC_KEY_free(EC_KEY *key)
    int EC_KEY_set_group(EC_KEY *key, const EC_GROUP *group)
    int EC_KEY_generate_key(EC_KEY *key)
    const EC_KEY_METHOD *EC_KEY_OpenSSL()
    EC_KEY_METHOD *EC_KEY_METHOD_new(const EC_KEY_METHOD *of)
    int EC_KEY_set_method(EC_KEY *key, const EC_KEY_METHOD *method)
    int i2o_ECPublicKey(const EC_KEY *key, unsigned char **out)

cdef extern from "openssl/provider.h" nogil:
    ctypedef struct OSSL_LIB_CTX:
        pass
    ctypedef struct OSSL_PROVIDER:
        pass
    OSSL_LIB_CTX *OSSL_LIB_CTX_new()
    void OSSL_LIB_CTX_free(OSSL_LIB_CTX *library)
    OSSL_PROVIDER *OSSL_PROVIDER_load(OSSL_LIB_CTX *library, const char *name)
    int OSSL_PROVIDER_unload(OSSL_PROVIDER *provider)

cdef extern from "openssl/params.h" nogil:
    ctypedef struct OSSL_PARAM:
        pass
    OSSL_PARAM OSSL_PARAM_construct_utf8_string(const char *name, char *text, size_t size)
    OSSL_PARAM OSSL_PARAM_construct_octet_string(const char *name, void *data, size_t size)
    OSSL_PARAM OSSL_PARAM_construct_end()

cdef extern from "openssl/kdf.h" nogil:
    ctypedef struct EVP_KDF:
        pass
    ctypedef struct EVP_KDF_CTX:
        pass
    EVP_KDF *EVP_KDF_fetch(OSSL_LIB_CTX *library, const char *name, const char *properties)
    void EVP_KDF_free(EVP_KDF *kdf)
    EVP_KDF_CTX *EVP_KDF_CTX_new(EVP_KDF *kdf)
    void EVP_KDF_CTX_free(EVP_KDF_CTX *context)
    int EVP_KDF_derive(EVP_KDF_CTX *context, unsigned char *out, size_t size, const OSSL_PARAM *parameters)

cdef extern from "openssl/bio.h" nogil:
    ctypedef struct BIO:
        pass
    ctypedef struct BIO_METHOD:
        pass
    int BIO_TYPE_SOURCE_SINK
    int BIO_CTRL_FLUSH
    int BIO_CTRL_DUP
    ctypedef int (*bio_write_t)(BIO *bio, const char *data, int size) noexcept nogil
    ctypedef int (*bio_read_t)(BIO *bio, char *to, int room) noexcept nogil
    ctypedef long (*bio_ctrl_t)(BIO *bio, int command, long number, void *pointer) noexcept nogil
    BIO_METHOD *BIO_meth_new(int type, const char *name)
    void BIO_meth_free(BIO_METHOD *method)
    int BIO_meth_set_write(BIO_METHOD *method, bio_write_t write)
    int BIO_meth_set_read(BIO_METHOD *method, bio_read_t read)
    int BIO_meth_set_ctrl(BIO_METHOD *method, bio_ctrl_t ctrl)
    BIO *BIO_new(const BIO_METHOD *method)
    BIO *BIO_new_mem_buf(const void *data, int size)
    int BIO_free(BIO *bio)
    void BIO_set_data(BIO *bio, void *data)
    void *BIO_get_data(BIO *bio)
    void BIO_set_init(BIO *bio, int init)
    void BIO_set_retry_read(BIO *bio)
    void BIO_clear_retry_flags(BIO *bio)

cdef extern from *:
    """
    #include <openssl/asn1t.h>
    #include <openssl/x509.h>
    static inline X509 *eos_d2i_X509_under(const unsigned char **data, long size, OSSL_LIB_CTX *library) {
        return (X509 *)ASN1_item_d2i_ex(NULL, data, size, ASN1_ITEM_rptr(X509), library, NULL);
    }
    static inline void eos_sk_X509_free(STACK_OF(X509) *stack) { sk_X509_pop_free(stack, X509_free); }
    """

cdef extern from "openssl/x509.h" nogil:
    ctypedef struct X509:
        pass
    ctypedef struct X509_NAME:
        pass
    ctypedef struct X509_STORE:
        pass
    ctypedef struct X509_STORE_CTX:
        pass
    ctypedef struct X509_VERIFY_PARAM:
        pass
    ctypedef struct STACK_OF_X509 "STACK_OF(X509)":
        pass
    X509 *d2i_X509(X509 **to, const unsigned char **data, long size)
    int i2d_X509(const X509 *certificate, unsigned char **out)
    X509 *X509_d2i_under "eos_d2i_X509_under"(const unsigned char **data, long size, OSSL_LIB_CTX *library)
    int X509_set_pubkey(X509 *certificate, EVP_PKEY *key)
    X509 *X509_new()
    int X509_sign(X509 *certificate, EVP_PKEY *key, const EVP_MD *digest)
    void X509_free(X509 *certificate)
    int X509_up_ref(X509 *certificate)
    EVP_PKEY *X509_get0_pubkey(const X509 *certificate)
    int i2d_X509_NAME(const X509_NAME *name, unsigned char **out)
    X509_NAME *X509_get_subject_name(const X509 *certificate)
    int i2d_PUBKEY(const EVP_PKEY *key, unsigned char **out)
    EVP_PKEY *d2i_AutoPrivateKey(EVP_PKEY **to, const unsigned char **data, long size)
    int X509_check_private_key(const X509 *certificate, const EVP_PKEY *key)
    int X509_check_purpose(X509 *certificate, int purpose, int is_ca)
    int X509_check_ca(X509 *certificate)

cdef extern from "openssl/x509.h" nogil:
    STACK_OF_X509 *sk_X509_new_null()
    int sk_X509_push(STACK_OF_X509 *stack, X509 *certificate)
    int sk_X509_num(const STACK_OF_X509 *stack)
    X509 *sk_X509_value(const STACK_OF_X509 *stack, int index)
    X509 *sk_X509_set(STACK_OF_X509 *stack, int index, X509 *certificate)
    X509 *sk_X509_pop(STACK_OF_X509 *stack)
    void OSSL_STACK_OF_X509_free "eos_sk_X509_free"(STACK_OF_X509 *stack)

cdef extern from "openssl/x509_vfy.h" nogil:
    int X509_STORE_set_flags(X509_STORE *store, unsigned long flags)
    int X509_STORE_add_cert(X509_STORE *store, X509 *certificate)
    int X509_V_OK
    int X509_V_ERR_UNSPECIFIED
    int X509_V_ERR_CERT_REJECTED
    int X509_V_ERR_INVALID_PURPOSE
    void *X509_STORE_CTX_get_ex_data(X509_STORE_CTX *verification, int index)
    STACK_OF_X509 *X509_STORE_CTX_get0_untrusted(const X509_STORE_CTX *verification)
    void X509_STORE_CTX_set_cert(X509_STORE_CTX *verification, X509 *certificate)
    void X509_STORE_CTX_set_error(X509_STORE_CTX *verification, int error)
    unsigned long X509_V_FLAG_X509_STRICT
    const char *X509_verify_cert_error_string(long code)
    int X509_PURPOSE_SSL_SERVER
    int X509_VERIFY_PARAM_set_purpose(X509_VERIFY_PARAM *parameters, int purpose)
    void X509_VERIFY_PARAM_set_time(X509_VERIFY_PARAM *parameters, time_t time)
    int X509_VERIFY_PARAM_set1_host(X509_VERIFY_PARAM *parameters, const char *name, size_t size)
    int X509_VERIFY_PARAM_set1_ip_asc(X509_VERIFY_PARAM *parameters, const char *address)

cdef extern from "openssl/x509v3.h" nogil:
    const ASN1_OCTET_STRING *X509_get0_subject_key_id(X509 *certificate)
    unsigned int X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS
    unsigned int X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
    ctypedef struct ASN1_OCTET_STRING:
        pass
    int ASN1_STRING_length(const void *string)
    const unsigned char *ASN1_STRING_get0_data(const void *string)

cdef extern from "openssl/pem.h" nogil:
    ctypedef int (*pem_password_cb)(char *to, int room, int writing, void *arg) noexcept nogil
    X509 *PEM_read_bio_X509(BIO *bio, X509 **to, pem_password_cb password, void *arg)

cdef extern from "openssl/ssl.h" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL_METHOD:
        pass
    ctypedef struct SSL_CIPHER:
        pass
    const SSL_METHOD *TLS_server_method()
    const SSL_METHOD *TLS_client_method()
    SSL_CTX *SSL_CTX_new(const SSL_METHOD *method)
    void SSL_CTX_free(SSL_CTX *context)
    int TLS1_2_VERSION
    int TLS1_3_VERSION
    int SSL_CTX_set_cipher_list(SSL_CTX *context, const char *names)
    void SSL_CTX_set_security_level(SSL_CTX *context, int level)
    const char *SSL_get_version(const SSL *ssl)
    int SSL_CTX_set_min_proto_version(SSL_CTX *context, int version)
    int SSL_CTX_set_max_proto_version(SSL_CTX *context, int version)
    int SSL_CTX_set_ciphersuites(SSL_CTX *context, const char *names)
    int SSL_CTX_set1_groups_list(SSL_CTX *context, const char *names)
    int SSL_CTX_set_num_tickets(SSL_CTX *context, size_t count)
    int SSL_CTX_set_session_cache_mode(SSL_CTX *context, int mode)
    int SSL_SESS_CACHE_OFF
    uint64_t SSL_CTX_set_options(SSL_CTX *context, uint64_t options)
    uint64_t SSL_OP_NO_TICKET
    uint64_t SSL_OP_NO_RENEGOTIATION
    uint64_t SSL_OP_NO_COMPRESSION
    uint64_t SSL_OP_CIPHER_SERVER_PREFERENCE
    long SSL_CTX_set_mode(SSL_CTX *context, long mode)
    long SSL_MODE_RELEASE_BUFFERS
    long SSL_MODE_NO_AUTO_CHAIN
    void SSL_CTX_set_read_ahead(SSL_CTX *context, int on)
    int SSL_CTX_set_max_early_data(SSL_CTX *context, uint32_t size)
    long SSL_CTX_set_max_cert_list(SSL_CTX *context, long size)
    void SSL_CTX_set_verify(SSL_CTX *context, int mode, void *callback)
    void SSL_set_verify(SSL *ssl, int mode, void *callback)
    ctypedef int (*cert_verify_t)(X509_STORE_CTX *verification, void *arg) noexcept nogil
    void SSL_CTX_set_cert_verify_callback(SSL_CTX *context, cert_verify_t callback, void *arg)
    int SSL_get_ex_data_X509_STORE_CTX_idx()
    int SSL_CTX_set1_client_sigalgs_list(SSL_CTX *context, const char *names)
    int SSL_VERIFY_NONE
    int SSL_VERIFY_PEER
    X509_STORE *SSL_CTX_get_cert_store(SSL_CTX *context)
    void SSL_CTX_set1_cert_store(SSL_CTX *context, X509_STORE *store)
    int SSL_CTX_set_alpn_protos(SSL_CTX *context, const unsigned char *list, unsigned int size)
    ctypedef int (*alpn_select_t)(SSL *ssl, const unsigned char **chosen, unsigned char *chosen_size,
                                  const unsigned char *offer, unsigned int offer_size, void *arg) noexcept nogil
    void SSL_CTX_set_alpn_select_cb(SSL_CTX *context, alpn_select_t select, void *arg)
    int SSL_select_next_proto(unsigned char **chosen, unsigned char *chosen_size, const unsigned char *server,
                              unsigned int server_size, const unsigned char *client, unsigned int client_size)
    int OPENSSL_NPN_NEGOTIATED
    int SSL_TLSEXT_ERR_OK
    int SSL_TLSEXT_ERR_ALERT_FATAL
    ctypedef int (*client_hello_t)(SSL *ssl, int *alert, void *arg) noexcept nogil
    void SSL_CTX_set_client_hello_cb(SSL_CTX *context, client_hello_t callback, void *arg)
    int SSL_CLIENT_HELLO_SUCCESS
    int SSL_CLIENT_HELLO_ERROR
    int SSL_client_hello_get0_ext(SSL *ssl, unsigned int type, const unsigned char **data, size_t *size)
    ctypedef int (*cert_cb_t)(SSL *ssl, void *arg) noexcept nogil
    void SSL_CTX_set_cert_cb(SSL_CTX *context, cert_cb_t callback, void *arg)
    ctypedef void (*msg_callback_t)(int written, int version, int content_type, const void *data, size_t size,
                                    SSL *ssl, void *arg) noexcept nogil
    void SSL_CTX_set_msg_callback(SSL_CTX *context, msg_callback_t callback)
    ctypedef int (*custom_ext_add_t)(SSL *ssl, unsigned int type, unsigned int where, const unsigned char **data,
                                     size_t *size, X509 *certificate, size_t index, int *alert,
                                     void *arg) noexcept nogil
    ctypedef void (*custom_ext_free_t)(SSL *ssl, unsigned int type, unsigned int where, const unsigned char *data,
                                       void *arg) noexcept nogil
    ctypedef int (*custom_ext_parse_t)(SSL *ssl, unsigned int type, unsigned int where, const unsigned char *data,
                                       size_t size, X509 *certificate, size_t index, int *alert,
                                       void *arg) noexcept nogil
    int SSL_CTX_add_custom_ext(SSL_CTX *context, unsigned int type, unsigned int where, custom_ext_add_t add,
                               custom_ext_free_t free_, void *add_arg, custom_ext_parse_t parse, void *parse_arg)
    unsigned int SSL_EXT_CLIENT_HELLO
    unsigned int SSL_EXT_TLS1_3_ONLY
    unsigned int SSL_EXT_TLS1_3_CERTIFICATE_REQUEST
    int SSL_AD_ILLEGAL_PARAMETER
    const char *SSL_alert_desc_string_long(int value)

    SSL *SSL_new(SSL_CTX *context)
    void SSL_free(SSL *ssl)
    BIO *SSL_get_rbio(const SSL *ssl)
    void SSL_set_bio(SSL *ssl, BIO *read, BIO *write)
    void SSL_set_accept_state(SSL *ssl)
    void SSL_set_connect_state(SSL *ssl)
    int SSL_is_init_finished(const SSL *ssl)
    int SSL_get_peer_tmp_key(SSL *ssl, EVP_PKEY **key)
    int SSL_read(SSL *ssl, void *to, int room)
    int SSL_write_ex(SSL *ssl, const void *data, size_t size, size_t *written)
    int SSL_shutdown(SSL *ssl)
    int SSL_get_error(const SSL *ssl, int result)
    int SSL_ERROR_WANT_READ
    int SSL_ERROR_ZERO_RETURN
    int SSL_free_buffers(SSL *ssl)
    const char *SSL_rstate_string(const SSL *ssl)
    int SSL_has_pending(const SSL *ssl)
    int SSL_use_cert_and_key(SSL *ssl, X509 *certificate, EVP_PKEY *key, STACK_OF_X509 *chain, int override)
    void SSL_certs_clear(SSL *ssl)
    int SSL_set_tlsext_host_name(SSL *ssl, const char *name)
    X509_VERIFY_PARAM *SSL_get0_param(SSL *ssl)
    void SSL_set_hostflags(SSL *ssl, unsigned int flags)
    long SSL_get_verify_result(const SSL *ssl)
    X509 *SSL_get0_peer_certificate(const SSL *ssl)
    STACK_OF_X509 *SSL_get_peer_cert_chain(const SSL *ssl)
    void SSL_get0_alpn_selected(const SSL *ssl, const unsigned char **name, unsigned int *size)
    const SSL_CIPHER *SSL_get_current_cipher(const SSL *ssl)
    const char *SSL_CIPHER_standard_name(const SSL_CIPHER *cipher)
    int SSL_get_negotiated_group(SSL *ssl)
    int SSL_export_keying_material(SSL *ssl, unsigned char *out, size_t size, const char *label, size_t label_size,
                                   const unsigned char *context, size_t context_size, int use_context)
    int SSL_key_update(SSL *ssl, int kind)
    int SSL_KEY_UPDATE_REQUESTED
    int SSL_KEY_UPDATE_NOT_REQUESTED

cdef extern from "openssl/tls1.h" nogil:
    unsigned int TLSEXT_TYPE_server_name
    unsigned int TLSEXT_TYPE_application_layer_protocol_negotiation
