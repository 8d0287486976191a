/* A block's spec, weights, data and options, from Python's dictionaries and arrays to the core's structs. */
#ifndef OQ_PYTHON_BLOCK_ARGS_H
#define OQ_PYTHON_BLOCK_ARGS_H

#include "calibrate/calibrate_block.h"
#include "python/array.h"

/* `keep` is a list that owns every array the core borrows: drop it to drop them all. */
typedef struct {
    PyObject *keep;
    oq_block_spec spec;
    oq_block_weights weights;
    oq_options options;
    oq_calibration_data data;
} oq_block_args;

/* Each returns 0, or -1 with an exception set. */
int oq_parse_spec(PyObject *dict, oq_block_spec *spec);
int oq_parse_activation(PyObject *dict, oq_activation_quantizers *quantizers);
int oq_parse_options(PyObject *dict, oq_options *options);
int oq_parse_weights(PyObject *dict, oq_block_args *args);
/* x [N, T, H] (sets samples and tokens on first use); NULL with an exception. */
const oq_real *oq_parse_stream(PyObject *object, const char *name, oq_block_args *args);
int oq_parse_rope(PyObject *cosine, PyObject *sine, oq_block_args *args);

int oq_block_args_begin(oq_block_args *args);
void oq_block_args_end(oq_block_args *args);

#endif
