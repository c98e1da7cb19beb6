/* GradientOptions: how the gradient loops work. Every option has a line in the table below, and no default. */
#include "bindings.h"

typedef struct {
    PyObject_HEAD
    qk_gradient_options options;
} options_object;

typedef enum { IS_BOOL, IS_INT64, IS_UINT64, IS_DOUBLE, IS_METHOD } field_kind;
typedef struct {
    const char *name;
    field_kind kind;
    size_t offset; /* in qk_gradient_options */
} field;

#define FIELD(member, kind) {#member, kind, offsetof(qk_gradient_options, member)}
static const field fields[] = {
    FIELD(method, IS_METHOD),        FIELD(update_bias, IS_BOOL),  FIELD(batch_size, IS_INT64),
    FIELD(step_positions, IS_INT64), FIELD(iterations, IS_INT64),  FIELD(learning_rate, IS_DOUBLE),
    FIELD(reg_param, IS_DOUBLE),     FIELD(warm_start, IS_DOUBLE), FIELD(beta_start, IS_DOUBLE),
    FIELD(beta_end, IS_DOUBLE),      FIELD(drop_ratio, IS_DOUBLE), FIELD(window, IS_INT64),
    FIELD(patience, IS_INT64),       FIELD(seed, IS_UINT64)};
enum { FIELDS = sizeof fields / sizeof *fields };

static void set_method(qk_gradient_method *method, PyObject *value) {
    static const char *const names[] = {[QK_ADAROUND] = "adaround", [QK_ADAQUANT] = "adaquant"};
    if (!PyUnicode_Check(value))
        PyErr_Format(PyExc_TypeError, "method: a str is needed, not %s", Py_TYPE(value)->tp_name);
    const char *name = PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : NULL;
    const int place = name ? qk_place_of(name, names, 2, "method") : -1;
    if (place >= 0) *method = (qk_gradient_method)place;
}

/* false with an exception set. */
static bool set_field(qk_gradient_options *options, const field *f, PyObject *value) {
    void *to = (char *)options + f->offset;
    switch (f->kind) {
    case IS_BOOL: *(bool *)to = PyObject_IsTrue(value) == 1; break;
    case IS_INT64: *(int64_t *)to = PyLong_AsLongLong(value); break;
    case IS_UINT64: *(uint64_t *)to = PyLong_AsUnsignedLongLong(value); break;
    case IS_DOUBLE: *(double *)to = PyFloat_AsDouble(value); break;
    case IS_METHOD: set_method(to, value); break;
    }
    return !PyErr_Occurred();
}

/* The first of the keywords that is no option; NULL: there is none. */
static PyObject *unknown_option(PyObject *kwargs) {
    PyObject *name;
    for (Py_ssize_t at = 0; PyDict_Next(kwargs, &at, &name, NULL);) {
        int i = 0;
        while (i < FIELDS && PyUnicode_CompareWithASCIIString(name, fields[i].name) != 0) i++;
        if (i == FIELDS) return name;
    }
    return NULL;
}

/* false with an exception set. */
static bool fill(qk_gradient_options *options, PyObject *args, PyObject *kwargs) {
    if (PyTuple_GET_SIZE(args) > 0 || !kwargs) {
        PyErr_SetString(PyExc_TypeError, "GradientOptions: every option is needed, by its name");
        return false;
    }
    for (int i = 0; i < FIELDS; i++) {
        PyObject *value = PyDict_GetItemString(kwargs, fields[i].name);
        if (!value) PyErr_Format(PyExc_TypeError, "GradientOptions: %s is missing", fields[i].name);
        if (!value || !set_field(options, &fields[i], value)) return false;
    }
    PyObject *unknown = unknown_option(kwargs);
    if (unknown) PyErr_Format(PyExc_TypeError, "GradientOptions: %R is no option", unknown);
    if (!unknown && options->iterations < 1) PyErr_SetString(PyExc_ValueError, "iterations: at least 1 is needed");
    return !PyErr_Occurred();
}

static PyObject *options_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    options_object *self = (options_object *)type->tp_alloc(type, 0);
    if (self && !fill(&self->options, args, kwargs)) Py_CLEAR(self);
    return (PyObject *)self;
}

static void options_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    type->tp_free(object);
    Py_DECREF(type);
}

const qk_gradient_options *qk_gradient_options_from(qk_module_state *state, PyObject *object) {
    if (Py_IS_TYPE(object, state->options_type)) return &((options_object *)object)->options;
    PyErr_Format(PyExc_TypeError, "options: GradientOptions are needed, not %s", Py_TYPE(object)->tp_name);
    return NULL;
}

static PyType_Slot options_slots[] = {{Py_tp_doc, "GradientOptions(*, method, update_bias, batch_size, step_positions, "
                                                  "iterations, learning_rate, reg_param, warm_start,"
                                                  " beta_start, beta_end, drop_ratio, window, patience, seed)\n--\n\n"
                                                  "How the gradient loops work."},
                                      {Py_tp_new, options_new},
                                      {Py_tp_dealloc, options_dealloc},
                                      {0, NULL}};
PyType_Spec qk_options_spec = {.name = "quark.onnx._core.GradientOptions",
                               .basicsize = sizeof(options_object),
                               .flags = Py_TPFLAGS_DEFAULT,
                               .slots = options_slots};
