/* ValueRanges: minimum, maximum and histogram of many tensors from one streaming pass. */
#include "bindings.h"

typedef struct {
    PyObject_HEAD
    Py_ssize_t count;
    int bins;
    qk_value_range **ranges;
    bool in_use;
} ranges_object;

static PyObject *ranges_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tensors", "bins", NULL};
    Py_ssize_t count;
    int bins = 2048;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "n|i:ValueRanges", names, &count, &bins)) return NULL;
    if (count < 0 || bins < 2 || bins % 2 || bins > QK_MOST_BINS)
        return PyErr_Format(PyExc_ValueError,
                            "ValueRanges: tensors >= 0 and an even number of bins from 2 to %d are needed",
                            QK_MOST_BINS);
    ranges_object *self = (ranges_object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->count = count;
    self->bins = bins;
    self->ranges = PyMem_Calloc(count > 0 ? (size_t)count : 1, sizeof *self->ranges);
    bool ok = self->ranges != NULL;
    for (Py_ssize_t i = 0; ok && i < count; i++) ok = (self->ranges[i] = qk_value_range_new(bins)) != NULL;
    if (!ok) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void ranges_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    ranges_object *self = (ranges_object *)object;
    for (Py_ssize_t i = 0; self->ranges && i < self->count; i++) qk_value_range_free(self->ranges[i]);
    PyMem_Free(self->ranges);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *ranges_update(PyObject *object, PyObject *arrays) {
    ranges_object *self = (ranges_object *)object;
    PyObject *items = qk_items_of(arrays, "update");
    if (!items) return NULL;
    const float **x = PyMem_Calloc((size_t)self->count + 1, sizeof *x);
    size_t *n = PyMem_Calloc((size_t)self->count + 1, sizeof *n), bad = 0;
    bool ok = x && n;
    if (!ok) PyErr_NoMemory();
    if (ok && PyTuple_GET_SIZE(items) != self->count) {
        PyErr_Format(PyExc_ValueError, "update: %zd arrays are needed, one per tensor", self->count);
        ok = false;
    }
    for (Py_ssize_t i = 0; ok && i < self->count; i++) {
        PyObject *item = PyTuple_GET_ITEM(items, i);
        PyArrayObject *array =
            qk_array(item, "update", NPY_FLOAT32, PyArray_Check(item) ? PyArray_SIZE((PyArrayObject *)item) : 0);
        ok = array != NULL;
        if (!ok) break;
        x[i] = PyArray_DATA(array);
        n[i] = (size_t)PyArray_SIZE(array);
    }
    ok = ok && qk_take(&self->in_use, "ValueRanges");
    if (ok) {
        qk_status status;
        Py_BEGIN_ALLOW_THREADS
        status = qk_value_ranges_update((qk_value_range *const *)self->ranges, x, n, (size_t)self->count, &bad);
        Py_END_ALLOW_THREADS
        self->in_use = false;
        ok = status == QK_OK;
        if (status == QK_E_NONFINITE)
            PyErr_Format(PyExc_ValueError, "tensor %zu contains NaN or Inf", bad);
        else if (!ok)
            qk_raise(status, "update");
    }
    PyMem_Free(x);
    PyMem_Free(n);
    Py_DECREF(items);
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

static PyObject *ranges_add(PyObject *object, PyObject *argument) {
    ranges_object *self = (ranges_object *)object, *other = (ranges_object *)argument;
    if (!Py_IS_TYPE(argument, Py_TYPE(object)))
        return PyErr_Format(PyExc_TypeError, "add: ValueRanges are needed, not %s", Py_TYPE(argument)->tp_name);
    if (other == self || other->count != self->count || other->bins != self->bins)
        return PyErr_Format(PyExc_ValueError, "add: others of as many tensors and bins are needed");
    if (!qk_take(&self->in_use, "ValueRanges")) return NULL;
    const bool ok = qk_take(&other->in_use, "ValueRanges");
    for (Py_ssize_t i = 0; ok && i < self->count; i++) qk_value_range_add(self->ranges[i], other->ranges[i]);
    if (ok) other->in_use = false;
    self->in_use = false;
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

/* NULL with an exception set, also where another thread has the object. */
static qk_value_range *range_at(ranges_object *self, Py_ssize_t i) {
    if (i < 0 || i >= self->count)
        PyErr_Format(PyExc_IndexError, "tensor %zd of %zd", i, self->count);
    else if (qk_take(&self->in_use, "ValueRanges"))
        return self->ranges[i];
    return NULL;
}

static PyObject *ranges_min_max(PyObject *object, PyObject *args) {
    Py_ssize_t i;
    if (!PyArg_ParseTuple(args, "n:min_max", &i)) return NULL;
    ranges_object *self = (ranges_object *)object;
    const qk_value_range *r = range_at(self, i);
    if (!r) return NULL;
    const float lo = qk_value_range_min(r), hi = qk_value_range_max(r);
    self->in_use = false;
    return Py_BuildValue("(ff)", lo, hi);
}

static PyObject *ranges_percentile(PyObject *object, PyObject *args) {
    Py_ssize_t i;
    double percentile;
    if (!PyArg_ParseTuple(args, "nd:percentile", &i, &percentile)) return NULL;
    if (!(percentile > 0 && percentile <= 100))
        return PyErr_Format(PyExc_ValueError, "percentile: a number in (0, 100] is needed");
    ranges_object *self = (ranges_object *)object;
    const qk_value_range *r = range_at(self, i);
    if (!r) return NULL;
    const float edge = qk_value_range_percentile(r, percentile);
    self->in_use = false;
    return PyFloat_FromDouble(edge);
}

static PyObject *ranges_histogram(PyObject *object, PyObject *args) {
    Py_ssize_t i;
    if (!PyArg_ParseTuple(args, "n:histogram", &i)) return NULL;
    ranges_object *self = (ranges_object *)object;
    const npy_intp size = 2 * (npy_intp)self->bins;
    PyObject *counts = qk_new_array(1, &size, NPY_UINT64);
    const qk_value_range *r = counts ? range_at(self, i) : NULL;
    if (!r) {
        Py_XDECREF(counts);
        return NULL;
    }
    const double width = qk_value_range_histogram(r, PyArray_DATA((PyArrayObject *)counts));
    self->in_use = false;
    return Py_BuildValue("(dN)", width, counts);
}

/* A sequence of numbers in (0, 100]; NULL with an exception set. The caller frees it. */
static double *percentiles_from(PyObject *sequence, int *count) {
    PyObject *items = qk_items_of(sequence, "percentiles");
    if (!items) return NULL;
    const Py_ssize_t n = PyTuple_GET_SIZE(items);
    double *out = PyMem_Calloc((size_t)n + 1, sizeof *out);
    if (!out) PyErr_NoMemory();
    for (Py_ssize_t i = 0; out && i < n; i++) {
        out[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(items, i));
        if (!PyErr_Occurred() && !(out[i] > 0 && out[i] <= 100))
            PyErr_SetString(PyExc_ValueError, "percentiles: numbers in (0, 100] are needed");
        if (PyErr_Occurred()) {
            PyMem_Free(out);
            out = NULL;
        }
    }
    Py_DECREF(items);
    *count = (int)n;
    return out;
}

static PyObject *ranges_choose(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tensor",    "method",      "qmin",    "qmax",   "symmetric", "scale_type",
                            "two_sided", "percentiles", "squared", "levels", NULL};
    static const char *const methods[] = {/* as qk_range_method */
                                          "MinMax",  "Percentile",   "MinMSE",
                                          "Entropy", "Distribution", "LayerwisePercentile"};
    Py_ssize_t i;
    const char *method, *scale_type;
    PyObject *percentiles;
    int symmetric, two_sided, squared;
    qk_range_choice choice = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ns$iipspOpi:choose", names, &i, &method, &choice.grid.qmin,
                                     &choice.grid.qmax, &symmetric, &scale_type, &two_sided, &percentiles, &squared,
                                     &choice.levels))
        return NULL;
    ranges_object *self = (ranges_object *)object;
    const int place = qk_place_of(method, methods, (int)(sizeof methods / sizeof methods[0]), "method");
    if (place < 0 || !qk_scale_type_from(scale_type, &choice.grid.scale_type)) return NULL;
    choice.method = (qk_range_method)place;
    choice.grid.symmetric = symmetric;
    choice.two_sided = two_sided;
    choice.squared = squared;
    if (choice.levels < 2 || choice.levels % 2 || choice.levels > 2 * self->bins)
        return PyErr_Format(PyExc_ValueError, "levels: an even number from 2 to %d is needed", 2 * self->bins);
    double *candidates = percentiles_from(percentiles, &choice.percentile_count);
    if (!candidates) return NULL;
    choice.percentiles = candidates;
    const bool by_percentile = choice.method == QK_RANGE_PERCENTILE || choice.method == QK_RANGE_LAYERWISE_PERCENTILE;
    if (by_percentile && choice.percentile_count == 0)
        PyErr_SetString(PyExc_ValueError, "percentiles: at least one is needed");
    const qk_value_range *r = PyErr_Occurred() ? NULL : range_at(self, i);
    float lo = 0, hi = 0;
    if (r) {
        Py_BEGIN_ALLOW_THREADS
        qk_value_range_choose(r, &choice, &lo, &hi);
        Py_END_ALLOW_THREADS
        self->in_use = false;
    }
    PyMem_Free(candidates);
    return r ? Py_BuildValue("(ff)", lo, hi) : NULL;
}

#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef ranges_methods[] = {
    {"update", ranges_update, METH_O,
     "update($self, arrays, /)\n--\n\nAdds one float32 array per tensor. ValueError on NaN or Inf."},
    {"add", ranges_add, METH_O, "add($self, other, /)\n--\n\nAdds all that others of the same tensors have seen."},
    {"min_max", ranges_min_max, METH_VARARGS, "min_max($self, tensor, /)\n--\n\nThe smallest and the largest value."},
    {"percentile", ranges_percentile, METH_VARARGS,
     "percentile($self, tensor, percentile, /)\n--\n\n"
     "The smallest bin edge t with at least that percentage of |x| <= t."},
    {"histogram", ranges_histogram, METH_VARARGS,
     "histogram($self, tensor, /)\n--\n\n"
     "(width, counts): counts (2 bins) uint64 of the values between (i - bins) and (i - bins + 1) widths."},
    {"choose", KEYWORDS(ranges_choose), METH_VARARGS | METH_KEYWORDS,
     "choose($self, tensor, method, *, qmin, qmax, symmetric, scale_type, two_sided, percentiles, squared, levels)"
     "\n--\n\nThe range (lowest, highest) that a CalibMethod gives the tensor."},
    {NULL, NULL, 0, NULL}};
static PyType_Slot ranges_slots[] = {
    {Py_tp_doc, "ValueRanges(tensors, bins=2048)\n--\n\n"
                "Minimum, maximum and a histogram for each of many tensors, streaming.\n"
                "Memory depends on neither the data's size nor its batches, and neither does the result."},
    {Py_tp_new, ranges_new},
    {Py_tp_dealloc, ranges_dealloc},
    {Py_tp_methods, ranges_methods},
    {0, NULL}};
PyType_Spec qk_ranges_spec = {.name = "quark.onnx._core.ValueRanges",
                              .basicsize = sizeof(ranges_object),
                              .flags = Py_TPFLAGS_DEFAULT,
                              .slots = ranges_slots};
