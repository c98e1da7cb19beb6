/* The Python side of training/selective.c. SelectiveUpdate: whether a whole model is better than it was kept last. */
#include "bindings.h"

typedef struct {
    PyObject_HEAD
    qk_selective selective;
    bool in_use;
} selective_object;

static PyObject *selective_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":SelectiveUpdate", names)) return NULL;
    selective_object *self = (selective_object *)type->tp_alloc(type, 0);
    if (self) self->selective = qk_selective_start();
    return (PyObject *)self;
}

static void selective_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *selective_add(PyObject *object, PyObject *args) {
    selective_object *self = (selective_object *)object;
    PyObject *have_argument, *want_argument;
    long long samples;
    if (!PyArg_ParseTuple(args, "OOL:add", &have_argument, &want_argument, &samples)) return NULL;
    const npy_intp count = PyArray_Check(want_argument) ? PyArray_SIZE((PyArrayObject *)want_argument) : 0;
    PyArrayObject *want = qk_array(want_argument, "want", NPY_FLOAT32, count), *have;
    if (!want || !(have = qk_array(have_argument, "have", NPY_FLOAT32, count))) return NULL;
    if (samples < 1 || count % samples)
        return PyErr_Format(PyExc_ValueError, "samples: a divisor of %zd is needed, not %lld", (Py_ssize_t)count,
                            samples);
    if (!qk_take(&self->in_use, "SelectiveUpdate")) return NULL;
    Py_BEGIN_ALLOW_THREADS
    qk_selective_add(&self->selective, PyArray_DATA(have), PyArray_DATA(want), samples, count / samples);
    Py_END_ALLOW_THREADS
    self->in_use = false;
    Py_RETURN_NONE;
}

static PyObject *selective_score(PyObject *object, PyObject *unused) {
    (void)unused;
    selective_object *self = (selective_object *)object;
    if (!qk_take(&self->in_use, "SelectiveUpdate")) return NULL;
    self->in_use = false; /* nothing below lets other threads run */
    return PyFloat_FromDouble(qk_selective_score(&self->selective));
}

static PyObject *selective_keep(PyObject *object, PyObject *argument) {
    selective_object *self = (selective_object *)object;
    const double score = PyFloat_AsDouble(argument);
    if (PyErr_Occurred() || !qk_take(&self->in_use, "SelectiveUpdate")) return NULL;
    self->in_use = false;
    return PyBool_FromLong(qk_selective_keep(&self->selective, score));
}

static PyMethodDef selective_methods[] = {
    {"add", selective_add, METH_VARARGS,
     "add($self, have, want, samples, /)\n--\n\n"
     "Adds the L2 norm of have - want of each of so many samples to the next score."},
    {"score", selective_score, METH_NOARGS,
     "score($self, /)\n--\n\nThe mean of the norms added since the last score; NaN when there are none."},
    {"keep", selective_keep, METH_O,
     "keep($self, score, /)\n--\n\n"
     "Whether a score is strictly below the one kept last (infinite at first), whose place it then takes."},
    {NULL, NULL, 0, NULL}};
static PyType_Slot selective_slots[] = {
    {Py_tp_doc, "SelectiveUpdate()\n--\n\n"
                "Whether a whole model is better than it was kept last: its scores, of which lower ones are better."},
    {Py_tp_new, selective_new},
    {Py_tp_dealloc, selective_dealloc},
    {Py_tp_methods, selective_methods},
    {0, NULL}};
PyType_Spec qk_selective_spec = {.name = "quark.onnx._core.SelectiveUpdate",
                                 .basicsize = sizeof(selective_object),
                                 .flags = Py_TPFLAGS_DEFAULT,
                                 .slots = selective_slots};
