/* QuantizedLayer: a layer as it was quantized, from which the solvers start. */
#include "bindings.h"

typedef struct {
    PyObject_HEAD
    qk_quantized_layer layer;
    npy_intp rows, inputs;
    PyObject *arrays; /* list: keeps the arrays' memory alive */
} quantized_layer_object;

/* One scale per row, or so many for blocks of neighbouring inputs as the array holds, if that divides K. */
static npy_intp scales_in(PyObject *array, npy_intp rows, npy_intp inputs) {
    const npy_intp size = PyArray_Check(array) ? PyArray_SIZE((PyArrayObject *)array) : 0, per_row = size / rows;
    return per_row > 1 && per_row * rows == size && inputs % per_row == 0 ? size : rows;
}

/* The data of an array that `self` keeps alive; NULL with an exception set. */
static const void *kept(quantized_layer_object *self, PyObject *object, const char *name, int type, npy_intp count) {
    PyArrayObject *array = qk_array(object, name, type, count);
    return array && qk_keep_array(self->arrays, object) ? PyArray_DATA(array) : NULL;
}

static bool fill(quantized_layer_object *self, PyObject *const arrays[4], PyObject *bias, PyObject *bias_scale) {
    qk_quantized_layer *l = &self->layer;
    const npy_intp size = PyArray_Check(arrays[0]) ? PyArray_SIZE((PyArrayObject *)arrays[0]) : 0;
    if (!(l->weight = kept(self, arrays[0], "weight", NPY_FLOAT32, size))) return false;
    if (PyArray_NDIM((PyArrayObject *)arrays[0]) != 2 || size == 0) {
        PyErr_SetString(PyExc_ValueError, "weight: an array (rows, inputs) is needed, neither of them 0");
        return false;
    }
    self->rows = PyArray_DIM((PyArrayObject *)arrays[0], 0);
    self->inputs = PyArray_DIM((PyArrayObject *)arrays[0], 1);
    const npy_intp scales = scales_in(arrays[2], self->rows, self->inputs);
    l->scale_block = size / scales;
    return (l->weight_q = kept(self, arrays[1], "weight_q", NPY_INT32, size)) &&
           (l->weight_scale = kept(self, arrays[2], "weight_scale", NPY_FLOAT32, scales)) &&
           (l->weight_zp = kept(self, arrays[3], "weight_zero_point", NPY_INT32, scales)) &&
           (bias == Py_None || (l->bias = kept(self, bias, "bias", NPY_FLOAT32, self->rows))) &&
           (bias_scale == Py_None || (l->bias_scale = kept(self, bias_scale, "bias_scale", NPY_FLOAT32, self->rows)));
}

static PyObject *quantized_layer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"weight", "weight_q",   "weight_scale", "weight_zero_point", "qmin", "qmax",
                            "bias",   "bias_scale", "bias_qmin",    "bias_qmax",         NULL};
    PyObject *arrays[4], *bias, *bias_scale;
    quantized_layer_object *self = (quantized_layer_object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    qk_quantized_layer *l = &self->layer;
    if ((self->arrays = PyList_New(0)) &&
        PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO$iiOOii:QuantizedLayer", names, &arrays[0], &arrays[1],
                                    &arrays[2], &arrays[3], &l->qmin, &l->qmax, &bias, &bias_scale, &l->bias_qmin,
                                    &l->bias_qmax) &&
        fill(self, arrays, bias, bias_scale))
        return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static void quantized_layer_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(((quantized_layer_object *)object)->arrays);
    type->tp_free(object);
    Py_DECREF(type);
}

const qk_quantized_layer *qk_quantized_layer_from(qk_module_state *state, PyObject *object, npy_intp rows,
                                                  npy_intp inputs) {
    if (!Py_IS_TYPE(object, state->quantized_layer_type)) {
        PyErr_Format(PyExc_TypeError, "start: a QuantizedLayer is needed, not %s", Py_TYPE(object)->tp_name);
        return NULL;
    }
    const quantized_layer_object *self = (quantized_layer_object *)object;
    if (self->rows != rows || self->inputs != inputs) {
        PyErr_Format(PyExc_ValueError, "start: a weight (%zd, %zd) is needed, not (%zd, %zd)", (Py_ssize_t)rows,
                     (Py_ssize_t)inputs, (Py_ssize_t)self->rows, (Py_ssize_t)self->inputs);
        return NULL;
    }
    return &self->layer;
}

static PyType_Slot quantized_layer_slots[] = {
    {Py_tp_doc, "QuantizedLayer(weight, weight_q, weight_scale, weight_zero_point, *, qmin, qmax, bias,"
                " bias_scale, bias_qmin, bias_qmax)\n--\n\n"
                "A layer as it was quantized, from which the solvers start. The arrays are not copied."},
    {Py_tp_new, quantized_layer_new},
    {Py_tp_dealloc, quantized_layer_dealloc},
    {0, NULL}};
PyType_Spec qk_quantized_layer_spec = {.name = "quark.onnx._core.QuantizedLayer",
                                       .basicsize = sizeof(quantized_layer_object),
                                       .flags = Py_TPFLAGS_DEFAULT,
                                       .slots = quantized_layer_slots};
