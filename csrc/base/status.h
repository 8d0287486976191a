/* What can go wrong, and the message that says what, where and which value. */
#ifndef OQ_BASE_STATUS_H
#define OQ_BASE_STATUS_H

typedef enum {
    OQ_OK = 0,
    OQ_INVALID_ARGUMENT,
    OQ_OUT_OF_MEMORY,
    OQ_NOT_FINITE,
    OQ_NOT_DOMINANT,
    OQ_SINGULAR,
    OQ_UNSUPPORTED,
    OQ_BACKEND,
    OQ_CANCELLED
} oq_code;

typedef struct {
    oq_code code;
    char message[320];
} oq_error;

#if defined(__GNUC__)
#define OQ_PRINTF(string_index, first_index) __attribute__((format(printf, string_index, first_index)))
#else
#define OQ_PRINTF(string_index, first_index)
#endif

/* Hand an error on to the caller. */
#define OQ_TRY(expression)                    \
    do {                                      \
        const oq_code oq_try_ = (expression); \
        if (oq_try_ != OQ_OK) return oq_try_; \
    } while (0)

#endif
