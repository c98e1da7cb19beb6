/* What the files of the extension module share. Only this folder includes Python.h. */
#ifndef QK_BINDINGS_H
#define QK_BINDINGS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL qk_numpy_api
#ifndef QK_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "qk.h"

typedef struct {
    PyTypeObject *pool_type, *ranges_type, *layer_type, *training_type, *quantized_layer_type, *options_type,
        *device_type;
    PyObject *device_error;
} qk_module_state;

extern PyModuleDef qk_module;
extern PyType_Spec qk_pool_spec, qk_ranges_spec, qk_layer_spec, qk_training_spec, qk_quantized_layer_spec,
    qk_options_spec, qk_device_spec;

/* The state of the module that defined self's type. */
qk_module_state *qk_state_of(PyObject *self);

/* ---- exceptions.c ---- */
/* Sets the exception for a status of the core and returns NULL. what: which call failed, for the message. */
PyObject *qk_raise(qk_status status, const char *what);

/* ---- arguments.c ---- */
/* A C-contiguous array of the given NumPy type and element count; NULL with ValueError or TypeError naming it.
 * Borrowed: the caller's argument keeps it alive. */
PyArrayObject *qk_array(PyObject *object, const char *name, int numpy_type, npy_intp count);
/* A tensor of float32, uint8 or int8, C-contiguous. false with an exception set. */
bool qk_tensor_from(PyObject *object, const char *name, qk_affine affine, qk_tensor *tensor);
/* A new tuple of the items of a sequence, which other code can then no longer change; NULL with an exception set. */
PyObject *qk_items_of(PyObject *sequence, const char *name);
/* A sequence of `count` integers. */
bool qk_integers_from(PyObject *sequence, const char *name, Py_ssize_t count, int64_t *out);
/* The place of `name` among the count names of `what`; -1 with ValueError that lists them. */
int qk_place_of(const char *name, const char *const *names, int count, const char *what);
/* "Float32", "PowerOf2" or "Int16"; NULL: Float32. */
bool qk_scale_type_from(const char *name, qk_scale_type *type);
/* None, or a tuple (kernel, strides, dilations, pads, auto_pad) of a Conv, into g. A ConvTranspose's has output_padding
 * and output_shape (or None) behind. */
bool qk_conv_from(PyObject *conv, qk_geometry *g);
/* Keeps an array's memory alive and where it is, as long as `list` lives: NumPy moves none that a weak reference points
 * to, not even with resize(refcheck=False). false with an exception set. */
bool qk_keep_array(PyObject *list, PyObject *array);
/* (scale, zero_point): arrays (count) of float32 and int32. */
PyObject *qk_affine_arrays(const qk_affine *affine, npy_intp count);
PyObject *qk_new_array(int ndim, const npy_intp *dims, int type);

/* Whether work should end: Python has an exception to raise, such as KeyboardInterrupt, or the ThreadPool `pool` was
 * cancelled, as signals only reach Python's main thread. Called with the GIL released, by the thread that called the
 * core. */
bool qk_cancelled(void *pool);

/* Methods take their object until they return, those that only read it too: false with RuntimeError when another thread
 * has it, which so much as reads it while the GIL is released. The flag is read and written with the GIL held. */
bool qk_take(bool *in_use, const char *name);

/* ---- pool.c ---- */
/* The pool behind a ThreadPool object, NULL with TypeError. */
qk_pool *qk_pool_from(qk_module_state *state, PyObject *object);
/* Whether `cancel` of a ThreadPool object was called. With the GIL held. */
bool qk_pool_is_cancelled(PyObject *pool);

/* ---- device.c ---- */
/* The device behind a Device object; NULL for None. false with TypeError. */
bool qk_device_from(qk_module_state *state, PyObject *object, qk_device **device);
/* qk_raise, with the device's own message where it is the device that failed: DeviceError, or MemoryError. */
PyObject *qk_raise_of(qk_module_state *state, qk_device *device, qk_status status, const char *what);

/* ---- quantized_layer.c, gradient_options.c ---- */
/* What is behind a QuantizedLayer object, and it has so many rows and inputs; NULL with an exception set. */
const qk_quantized_layer *qk_quantized_layer_from(qk_module_state *state, PyObject *object, npy_intp rows,
                                                  npy_intp inputs);
/* What is behind a GradientOptions object; NULL with TypeError. */
const qk_gradient_options *qk_gradient_options_from(qk_module_state *state, PyObject *object);

#endif
