#include "bindings.h"

PyArrayObject *qk_array(PyObject *object, const char *name, int numpy_type, npy_intp count) {
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s: a NumPy array is needed, not %s", name, Py_TYPE(object)->tp_name);
        return NULL;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    if (PyArray_TYPE(array) != numpy_type) {
        PyArray_Descr *wanted = PyArray_DescrFromType(numpy_type);
        PyErr_Format(PyExc_TypeError, "%s: dtype %S is needed, not %S", name, (PyObject *)wanted,
                     (PyObject *)PyArray_DESCR(array));
        Py_XDECREF(wanted);
        return NULL;
    }
    if (!PyArray_ISCARRAY_RO(array)) {
        PyErr_Format(PyExc_ValueError, "%s: a C-contiguous, aligned array in native byte order is needed", name);
        return NULL;
    }
    if (PyArray_SIZE(array) != count) {
        PyErr_Format(PyExc_ValueError, "%s: %zd elements are needed, not %zd", name, (Py_ssize_t)count,
                     (Py_ssize_t)PyArray_SIZE(array));
        return NULL;
    }
    return array;
}

bool qk_tensor_from(PyObject *object, const char *name, qk_affine affine, qk_tensor *tensor) {
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s: a NumPy array is needed, not %s", name, Py_TYPE(object)->tp_name);
        return false;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    const int type = PyArray_TYPE(array), ndim = PyArray_NDIM(array);
    if (type != NPY_FLOAT32 && type != NPY_UINT8 && type != NPY_INT8) {
        PyErr_Format(PyExc_TypeError, "%s: float32, uint8 or int8 is needed, not %S", name,
                     (PyObject *)PyArray_DESCR(array));
        return false;
    }
    if (ndim < 1 || ndim > QK_MAX_DIMS || !PyArray_ISCARRAY_RO(array)) {
        PyErr_Format(PyExc_ValueError, "%s: a C-contiguous array of 1 to %d dimensions in native byte order is needed",
                     name, QK_MAX_DIMS);
        return false;
    }
    *tensor = (qk_tensor){.data = PyArray_DATA(array),
                          .ndim = ndim,
                          .affine = affine,
                          .dtype = type == NPY_FLOAT32 ? QK_F32
                                   : type == NPY_UINT8 ? QK_U8
                                                       : QK_I8};
    for (int i = 0; i < ndim; i++) tensor->dims[i] = PyArray_DIM(array, i);
    return true;
}

PyObject *qk_items_of(PyObject *sequence, const char *name) {
    PyObject *items = PySequence_Tuple(sequence);
    if (!items && PyErr_ExceptionMatches(PyExc_TypeError))
        PyErr_Format(PyExc_TypeError, "%s: a sequence is needed, not %s", name, Py_TYPE(sequence)->tp_name);
    return items;
}

bool qk_integers_from(PyObject *sequence, const char *name, Py_ssize_t count, int64_t *out) {
    PyObject *items = qk_items_of(sequence, name);
    if (!items) return false;
    bool ok = PyTuple_GET_SIZE(items) == count;
    if (!ok) PyErr_Format(PyExc_ValueError, "%s: %zd integers are needed", name, count);
    for (Py_ssize_t i = 0; ok && i < count; i++) {
        out[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(items, i));
        ok = !PyErr_Occurred();
    }
    Py_DECREF(items);
    return ok;
}

bool qk_take(bool *in_use, const char *name) {
    if (*in_use) {
        PyErr_Format(PyExc_RuntimeError, "this %s is in use by another thread: give each thread its own", name);
        return false;
    }
    *in_use = true;
    return true;
}

int qk_place_of(const char *name, const char *const *names, int count, const char *what) {
    PyObject *known = PyList_New(0);
    for (int i = 0; known && i < count; i++) {
        if (strcmp(name, names[i]) == 0) {
            Py_DECREF(known);
            return i;
        }
        PyObject *item = PyUnicode_FromString(names[i]);
        if (!item || PyList_Append(known, item) != 0) Py_CLEAR(known);
        Py_XDECREF(item);
    }
    if (known) PyErr_Format(PyExc_ValueError, "%s: '%s' is none of %R", what, name, known);
    Py_XDECREF(known);
    return -1;
}

bool qk_scale_type_from(const char *name, qk_scale_type *type) {
    static const char *const names[] = {"Float32", "PowerOf2", "Int16"}; /* as qk_scale_type */
    const int place = name ? qk_place_of(name, names, 3, "scale_type") : 0;
    if (place >= 0) *type = (qk_scale_type)place;
    return place >= 0;
}

bool qk_conv_from(PyObject *conv, qk_geometry *g) {
    if (conv == Py_None) return true;
    PyObject *kernel, *stride, *dilation, *pads, *output_padding = NULL, *output_shape = NULL;
    int auto_pad;
    if (!PyTuple_Check(conv)) {
        PyErr_Format(PyExc_TypeError, "conv: a tuple (kernel, strides, dilations, pads, auto_pad) is needed, not %s",
                     Py_TYPE(conv)->tp_name);
        return false;
    }
    if (!PyArg_ParseTuple(conv,
                          "OOOOi|OO;conv: (kernel, strides, dilations, pads, auto_pad) is needed, and output_padding "
                          "and output_shape of a ConvTranspose",
                          &kernel, &stride, &dilation, &pads, &auto_pad, &output_padding, &output_shape))
        return false;
    const Py_ssize_t n = PySequence_Size(kernel);
    if (n < 1 || n > QK_MAX_SPATIAL || auto_pad < 0 || auto_pad > QK_PAD_VALID) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_ValueError, "conv: 1 to %d spatial axes and auto_pad 0 to 3 are needed", QK_MAX_SPATIAL);
        return false;
    }
    int64_t both[2 * QK_MAX_SPATIAL];
    if (!qk_integers_from(kernel, "kernel", n, g->kernel) || !qk_integers_from(stride, "strides", n, g->stride) ||
        !qk_integers_from(dilation, "dilations", n, g->dilation) || !qk_integers_from(pads, "pads", 2 * n, both) ||
        (output_padding && !qk_integers_from(output_padding, "output_padding", n, g->output_padding)) ||
        (output_shape && output_shape != Py_None &&
         !qk_integers_from(output_shape, "output_shape", n, g->output_shape)))
        return false;
    g->transposed = output_padding != NULL;
    g->spatial = (int)n;
    g->auto_pad = (qk_auto_pad)auto_pad;
    for (Py_ssize_t i = 0; i < n; i++) {
        g->pad_begin[i] = both[i];
        g->pad_end[i] = both[n + i];
    }
    return true;
}

bool qk_keep_array(PyObject *list, PyObject *array) {
    PyObject *reference = PyWeakref_NewRef(array, NULL);
    const bool ok = reference && PyList_Append(list, array) == 0 && PyList_Append(list, reference) == 0;
    Py_XDECREF(reference);
    return ok;
}

PyObject *qk_affine_arrays(const qk_affine *affine, npy_intp count) {
    PyObject *scale = qk_new_array(1, &count, NPY_FLOAT32), *zero_point = qk_new_array(1, &count, NPY_INT32);
    if (!scale || !zero_point) {
        Py_XDECREF(scale);
        Py_XDECREF(zero_point);
        return NULL;
    }
    for (npy_intp i = 0; i < count; i++) {
        ((float *)PyArray_DATA((PyArrayObject *)scale))[i] = affine[i].scale;
        ((int32_t *)PyArray_DATA((PyArrayObject *)zero_point))[i] = affine[i].zero_point;
    }
    return Py_BuildValue("(NN)", scale, zero_point);
}

PyObject *qk_new_array(int ndim, const npy_intp *dims, int type) {
    return PyArray_SimpleNew(ndim, (npy_intp *)dims, type);
}

bool qk_cancelled(void *pool) {
    const PyGILState_STATE gil = PyGILState_Ensure();
    const bool cancelled = qk_pool_is_cancelled(pool) || PyErr_CheckSignals() != 0;
    PyGILState_Release(gil);
    return cancelled;
}
