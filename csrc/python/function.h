/* A function of the module is a table, one line an argument or result, and a body that calls the core:
 *
 *     struct values {
 *         const uint8_t *codes;
 *         int64_t bits;
 *         uint8_t *packed;
 *     };
 *
 *     static const oq_argument pack_arguments[] = {
 *         OQ_ARRAY(codes, "*k"),                 rows of k codes, any number of axes before
 *         OQ_SCALAR(bits, .then = packed_width), which sets size p
 *         OQ_RESULT(packed, "*p"),               a new array
 *     };
 *     static oq_code pack_run(oq_call *call, values *v) { return oq_pack(...); }
 *     OQ_FUNCTION(pack);
 *
 * The lines are worked off in their order, which is also that of Python's arguments.  The body runs without the
 * GIL; afterwards the results are returned, one as it is and several as a tuple.  What a line makes of its object
 * is told by the type of the field it fills:
 *
 *     [const] float *, double *, uint8_t *, int32_t *     an array (OQ_ARRAY, OQ_RESULT)
 *     int64_t, int, double, bool                          a number, a truth value
 *     an enum                                             one of the strings `choices`
 *     const char *                                        a string, borrowed
 *     PyObject *                                          the object itself, borrowed, for `then`
 *
 * Letters of shapes are sizes.  The first array that has a letter sets it, every other has to agree. */
#ifndef OQ_PYTHON_FUNCTION_H
#define OQ_PYTHON_FUNCTION_H

#include <string.h>

#include "base/context.h"
#include "base/real.h"
#include "python/numpy_api.h"

typedef enum {
    OQ_FLOATS,
    OQ_DOUBLES,
    OQ_BYTES,
    OQ_INDICES,
    OQ_INT,
    OQ_LONG,
    OQ_NUMBER,
    OQ_FLAG,
    OQ_CHOICE,
    OQ_STRING,
    OQ_OBJECT,
    OQ_DICT,         /* a dict, by `fields` */
    OQ_THREAD_COUNT, /* of the call itself */
    OQ_STEP          /* no argument: only calls `then` */
} oq_kind;

#define OQ_REALS (sizeof(oq_real) == sizeof(double) ? OQ_DOUBLES : OQ_FLOATS)

enum {
    OQ_OPTIONAL = 1, /* may be left out: an array or object then is NULL, a number `otherwise` */
    OQ_KEYWORD = 2,  /* by keyword alone, and may be left out */
    OQ_NEEDED = 4,   /* though OQ_KEYWORD */
    OQ_NULLABLE = 8, /* may be None, which is NULL; so may every array, string and object that may be left out */
    OQ_FINITE = 16,  /* NaN and infinity are refused, by row and column */
    OQ_MADE = 32,    /* a result */
    OQ_INTO = 64     /* a result that is written into the caller's array where one is given: NumPy's `out` */
};

enum { OQ_MAX_ARGUMENTS = 24, OQ_MAX_INPUTS = 16, OQ_MAX_AXES = 64 };

typedef struct values values; /* what a function fills and uses: each file of functions has its own */
typedef struct oq_call oq_call;

typedef struct oq_argument {
    const char *name;
    oq_kind kind;
    size_t at;         /* where its value lies in the struct */
    const char *shape; /* of an array: a letter an axis; * first: any number of axes */
    unsigned flags;
    double otherwise;           /* a number that is left out */
    const char *range;          /* of a number: "[0, inf)", "(0, 1)"; "bits": 2..8, or 16 and more for none */
    const char *const *choices; /* strings in the enum's order, ended by NULL; "": none for this value */
    const struct oq_argument *fields; /* of a dict, ended by a line without a name */
    size_t when;                      /* a result made only where this pointer is not NULL, else None; 0: always */
    /* Right after the value is there: sets sizes, parses an object, checks one value by another. 0, or -1 with
     * an exception. */
    int (*then)(oq_call *call, values *v);
} oq_argument;

typedef struct {
    const char *name;
    const oq_argument *arguments;
    size_t count;
    oq_code (*run)(oq_call *call, values *v);
    PyObject *(*finish)(oq_call *call, values *v); /* makes the result instead; may be NULL */
} oq_function;

/* One call while it lasts. */
struct oq_call {
    const oq_function *function;
    oq_context context;
    int threads;
    PyObject *keep;                         /* a list: owns every array of the call */
    PyArrayObject *array[OQ_MAX_ARGUMENTS]; /* by line, NULL where there is none; borrowed */
    int64_t size[128];                      /* of every letter, -1: not yet known; '*': the axes' product */
    npy_intp axes[OQ_MAX_AXES];             /* what * stands for */
    int axis_count;                         /* -1: not yet known */
};

PyObject *oq_invoke(const oq_function *function, values *v, PyObject *positional, PyObject *keywords);

static inline int64_t oq_size(const oq_call *call, char letter) { return call->size[(int)letter]; }

/* ---- arrays beside those of the table, for `then` and `finish` ------------- */

/* A new reference to `object` as a C-contiguous, aligned, native array of `type` (NPY_FLOAT, NPY_UINT8, ...).
 * Any layout is taken; other dtypes are converted where NumPy's "same_kind" allows it, integers to other integers
 * where every value fits.  The input is never written to (the result may be the input itself: do not write
 * there).  NULL: TypeError or ValueError naming the argument. */
PyArrayObject *oq_array_in(PyObject *object, const char *name, int type);
/* object as an array of the kind and shape, or a new one; the call owns both.  NULL with an exception. */
PyArrayObject *oq_take_array(oq_call *call, PyObject *object, const char *name, oq_kind kind, const char *shape);
PyArrayObject *oq_make_array(oq_call *call, oq_kind kind, const char *shape);
/* object itself, which has to be such an array already, to be written to, and apart from every other of the call. */
PyArrayObject *oq_take_out(oq_call *call, PyObject *object, const char *name, oq_kind kind, const char *shape);
/* The array of a line of the table. */
PyArrayObject *oq_made_array(const oq_call *call, const char *name);
/* Never NULL, also where there are no elements. */
void *oq_data(PyArrayObject *array);

/* ---- values that are no arrays --------------------------------------------- */

/* Sets the field at `to`; object NULL: left out.  `where` is for messages: "threads", "options[\"epochs\"]". */
int oq_take_scalar(const oq_argument *argument, PyObject *object, const char *where, void *to);

/* ---- the lines of tables --------------------------------------------------- */

/* clang-format off */
#define OQ_KIND_OF(field) _Generic((field),                 \
    float *: OQ_FLOATS,     const float *: OQ_FLOATS,       \
    double *: OQ_DOUBLES,   const double *: OQ_DOUBLES,     \
    uint8_t *: OQ_BYTES,    const uint8_t *: OQ_BYTES,      \
    int32_t *: OQ_INDICES,  const int32_t *: OQ_INDICES,    \
    int: OQ_INT, int64_t: OQ_LONG, uint64_t: OQ_LONG, double: OQ_NUMBER, bool: OQ_FLAG, unsigned: OQ_CHOICE, \
    const char *: OQ_STRING, PyObject *: OQ_OBJECT)
/* clang-format on */
#define OQ_LINE(type, field) .kind = OQ_KIND_OF(((type *)0)->field), .at = offsetof(type, field)

/* These fill the field of their own name in the file's struct `values`; more members may follow. */
#define OQ_ARRAY(field, shape_, ...) {.name = #field, OQ_LINE(values, field), .shape = shape_, __VA_ARGS__}
#define OQ_SCALAR(field, ...) {.name = #field, OQ_LINE(values, field), __VA_ARGS__}
#define OQ_STRUCT(field, fields_, ...) OQ_FIELDS(#field, values, field, fields_, __VA_ARGS__)
#define OQ_RESULT(field, shape_, ...) \
    {.name = #field, OQ_LINE(values, field), .shape = shape_, .flags = OQ_MADE, __VA_ARGS__}
#define OQ_DERIVED(function) {.kind = OQ_STEP, .flags = OQ_MADE, .then = function}
#define OQ_THREADS {.name = "threads", .kind = OQ_THREAD_COUNT, .flags = OQ_KEYWORD, .otherwise = 1}
/* The lines of a dict fill any struct. */
#define OQ_FIELD(key, type, field, ...) {.name = key, OQ_LINE(type, field), __VA_ARGS__}
#define OQ_FIELDS(key, type, field, fields_, ...) \
    {.name = key, .kind = OQ_DICT, .at = offsetof(type, field), .fields = fields_, __VA_ARGS__}

#define OQ_COUNT(table) (sizeof(table) / sizeof *(table))

/* The module's function `name` from name_arguments and name_run; OQ_FUNCTION_WITH also takes a `finish`. */
#define OQ_FUNCTION_WITH(name, finish_)                                                                       \
    static PyObject *name(PyObject *module, PyObject *positional, PyObject *keywords)                         \
    {                                                                                                         \
        static const oq_function function = {#name, name##_arguments, OQ_COUNT(name##_arguments), name##_run, \
                                             finish_};                                                        \
        values v;                                                                                             \
        (void)module;                                                                                         \
        memset(&v, 0, sizeof v);                                                                              \
        return oq_invoke(&function, &v, positional, keywords);                                                \
    }                                                                                                         \
    _Static_assert(OQ_COUNT(name##_arguments) <= OQ_MAX_ARGUMENTS, #name " has too many arguments")
#define OQ_FUNCTION(name) OQ_FUNCTION_WITH(name, NULL)
/* Its line in the topic's table. */
#define OQ_METHOD(name, doc) {#name, (PyCFunction)(void (*)(void))name, METH_VARARGS | METH_KEYWORDS, doc}

#endif
