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

bool qk_integers_from(PyObject *sequence, const char *name, Py_ssize_t count, int64_t *out) {
    PyObject *items = PySequence_Fast(sequence, "a sequence of integers is needed");
    if (!items) return false;
    bool ok = PySequence_Fast_GET_SIZE(items) == count;
    if (!ok) PyErr_Format(PyExc_ValueError, "%s: %zd integers are needed", name, count);
    for (Py_ssize_t i = 0; ok && i < count; i++) {
        out[i] = PyLong_AsLongLong(PySequence_Fast_GET_ITEM(items, i));
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
