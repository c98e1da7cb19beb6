/* TrainingData: the samples of one layer, and the gradient loops on them. */
#include "bindings.h"

#include "base/sizes.h"

typedef struct {
    PyObject_HEAD
    qk_training_data *data;
    npy_intp rows, inputs;
    qk_affine x_affine;
    PyObject *arrays; /* list: keeps the samples' memory alive */
    bool in_use;
} training_object;

/* None, or (activation, a, b, slopes or None, axis, folded, (scale, zero_point, qmin, qmax) or None). */
static bool stage_from(PyObject *argument, npy_intp rows, qk_output_stage *stage) {
    static const char *const names[] = {[QK_NO_ACTIVATION] = "none",
                                        [QK_CLIP] = "clip",
                                        [QK_LEAKY_RELU] = "leaky_relu",
                                        [QK_SIGMOID] = "sigmoid",
                                        [QK_TANH] = "tanh",
                                        [QK_GELU] = "gelu",
                                        [QK_GELU_TANH] = "gelu_tanh",
                                        [QK_HARD_SIGMOID] = "hard_sigmoid",
                                        [QK_HARD_SWISH] = "hard_swish",
                                        [QK_SILU] = "silu",
                                        [QK_SOFTMAX] = "softmax"};
    enum { KINDS = sizeof names / sizeof *names };
    *stage = (qk_output_stage){.activation = {.kind = QK_NO_ACTIVATION}};
    if (argument == Py_None) return true;
    const char *name;
    PyObject *slopes, *grid;
    int folded, kind = 0;
    if (!PyTuple_Check(argument)) {
        PyErr_Format(PyExc_TypeError, "stage: a tuple is needed, not %s", Py_TYPE(argument)->tp_name);
        return false;
    }
    if (!PyArg_ParseTuple(argument, "sffOipO;stage: (activation, a, b, slopes, axis, folded, grid) is needed", &name,
                          &stage->activation.a, &stage->activation.b, &slopes, &stage->axis, &folded, &grid))
        return false;
    while (kind < KINDS && strcmp(name, names[kind]) != 0) kind++;
    if (kind == KINDS) {
        PyErr_Format(PyExc_ValueError, "stage: no activation is called %s", name);
        return false;
    }
    stage->activation.kind = (qk_activation_kind)kind;
    stage->folded = folded;
    if (slopes != Py_None) {
        PyArrayObject *array = qk_array(slopes, "slopes", NPY_FLOAT32, rows);
        if (!array) return false;
        stage->slopes = PyArray_DATA(array);
    }
    stage->quantized = grid != Py_None;
    if (stage->quantized && !PyTuple_Check(grid)) {
        PyErr_Format(PyExc_TypeError, "stage: a grid (scale, zero_point, qmin, qmax) is needed, not %s",
                     Py_TYPE(grid)->tp_name);
        return false;
    }
    return !stage->quantized ||
           PyArg_ParseTuple(grid, "fiii;stage: a grid (scale, zero_point, qmin, qmax) is needed", &stage->affine.scale,
                            &stage->affine.zero_point, &stage->grid.qmin, &stage->grid.qmax);
}

static PyObject *training_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"inputs", "outputs", "groups", "conv", "holdout", "x_scale", "x_zero_point", "stage", NULL};
    long long inputs, outputs, groups = 1;
    int holdout = 0;
    qk_affine affine = {1.0f, 0};
    PyObject *conv = Py_None, *stage_argument = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LL|$LOifiO:TrainingData", names, &inputs, &outputs, &groups, &conv,
                                     &holdout, &affine.scale, &affine.zero_point, &stage_argument))
        return NULL;
    qk_geometry geometry = {.inputs = inputs, .outputs = outputs, .groups = groups};
    qk_output_stage stage;
    const int64_t rows = QK_PRODUCT(groups, outputs);
    if (rows < 0) return qk_raise(QK_E_ARG, "TrainingData");
    if (!qk_conv_from(conv, &geometry) || !stage_from(stage_argument, rows, &stage)) return NULL;
    training_object *self = (training_object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->x_affine = affine;
    self->rows = rows;
    self->inputs = (npy_intp)inputs;
    self->arrays = PyList_New(0);
    const bool kept = self->arrays && PyList_Append(self->arrays, stage_argument) == 0 &&
                      (!stage.slopes || qk_keep_array(self->arrays, PyTuple_GET_ITEM(stage_argument, 3)));
    const qk_status status = kept ? qk_training_data_new(&self->data, &geometry, &stage, holdout) : QK_OK;
    if (kept && status == QK_OK) return (PyObject *)self;
    Py_DECREF(self);
    return kept ? qk_raise(status, "TrainingData") : NULL;
}

static void training_dealloc(PyObject *object) {
    training_object *self = (training_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    qk_training_data_free(self->data);
    Py_XDECREF(self->arrays);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *training_add(PyObject *object, PyObject *args) {
    training_object *self = (training_object *)object;
    const qk_affine none = {1.0f, 0};
    PyObject *x_argument, *y_argument, *float_argument = Py_None;
    qk_tensor x, y, x_float;
    if (!PyArg_ParseTuple(args, "OO|O:add", &x_argument, &y_argument, &float_argument) ||
        !qk_tensor_from(x_argument, "x", self->x_affine, &x) || !qk_tensor_from(y_argument, "y", none, &y) ||
        (float_argument != Py_None && !qk_tensor_from(float_argument, "x_float", none, &x_float)) ||
        !qk_take(&self->in_use, "TrainingData"))
        return NULL;
    const Py_ssize_t before = PyList_GET_SIZE(self->arrays);
    /* First kept, then added: what cannot be kept must not be read later. */
    const bool kept = qk_keep_array(self->arrays, x_argument) && qk_keep_array(self->arrays, y_argument) &&
                      (float_argument == Py_None || qk_keep_array(self->arrays, float_argument));
    const qk_status status =
        kept ? qk_training_data_add(self->data, &x, float_argument != Py_None ? &x_float : NULL, &y) : QK_OK;
    self->in_use = false;
    if (status != QK_OK) PyList_SetSlice(self->arrays, before, PyList_GET_SIZE(self->arrays), NULL);
    if (!kept) return NULL;
    return status == QK_OK ? Py_NewRef(Py_None) : qk_raise(status, "add");
}

static PyObject *result_dict(const qk_gradient_result *r, PyObject *weight, PyObject *bias, PyObject *losses) {
    return Py_BuildValue(
        "{s:O,s:O,s:O,s:(dd),s:(dd),s:(dd),s:(LL),s:L,s:L,s:L,s:O,s:O}", "weight", weight, "bias", bias, "losses",
        losses, "before", r->before[QK_FITTED], r->before[QK_HELD_OUT], "after", r->after[QK_FITTED],
        r->after[QK_HELD_OUT], "power", r->power[QK_FITTED], r->power[QK_HELD_OUT], "samples",
        (long long)r->samples[QK_FITTED], (long long)r->samples[QK_HELD_OUT], "improved", (long long)r->improved,
        "trained", (long long)r->trained, "iterations", (long long)r->iterations, "stopped_early",
        r->end == QK_STOPPED_EARLY ? Py_True : Py_False, "on_device", r->on_device ? Py_True : Py_False);
}

/* None, or (weight, bias): another solution for the same start. Its bias may be None only where the bias stays. */
static bool offered_from(const training_object *self, PyObject *offered, bool tunes_bias, qk_gradient_options *o) {
    PyObject *weight, *bias;
    PyArrayObject *w, *b;
    if (offered == Py_None) return true;
    if (!PyTuple_Check(offered)) {
        PyErr_Format(PyExc_TypeError, "offered: (weight, bias) is needed, not %s", Py_TYPE(offered)->tp_name);
        return false;
    }
    if (!PyArg_ParseTuple(offered, "OO;offered: (weight, bias) is needed", &weight, &bias) ||
        !(w = qk_array(weight, "offered weight", NPY_INT32, self->rows * self->inputs)))
        return false;
    o->offered_weight_q = PyArray_DATA(w);
    if (!tunes_bias) return true;
    if (!(b = qk_array(bias, "offered bias", NPY_INT32, self->rows))) return false;
    o->offered_bias_q = PyArray_DATA(b);
    return true;
}

static PyObject *training_train(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"start", "options", "pool", "offered", "device", NULL};
    training_object *self = (training_object *)object;
    qk_module_state *state = qk_state_of(object);
    PyObject *start_argument, *options_argument, *pool_argument, *offered = Py_None, *device = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$OO:train", names, &start_argument, &options_argument,
                                     &pool_argument, &offered, &device))
        return NULL;
    const qk_quantized_layer *start = qk_quantized_layer_from(state, start_argument, self->rows, self->inputs);
    const qk_gradient_options *given = start ? qk_gradient_options_from(state, options_argument) : NULL;
    qk_pool *pool = given ? qk_pool_from(state, pool_argument) : NULL;
    if (!pool) return NULL;
    qk_gradient_options options = *given; /* with what belongs to this call alone */
    const bool tunes_bias = start->bias && start->bias_scale && options.update_bias;
    if (!offered_from(self, offered, tunes_bias, &options) || !qk_device_from(state, device, &options.device))
        return NULL;
    options.cancelled = qk_cancelled;
    options.user = pool_argument;
    const npy_intp dims[] = {self->rows, self->inputs}, steps = (npy_intp)options.iterations;
    PyObject *new_weight = qk_new_array(2, dims, NPY_INT32), *losses = qk_new_array(1, &steps, NPY_FLOAT64);
    PyObject *new_bias = tunes_bias ? qk_new_array(1, dims, NPY_INT32) : Py_NewRef(Py_None);
    PyObject *result = NULL;
    if (new_weight && losses && new_bias && qk_take(&self->in_use, "TrainingData")) {
        qk_gradient_result r = {.weight_q = PyArray_DATA((PyArrayObject *)new_weight)};
        if (tunes_bias) r.bias_q = PyArray_DATA((PyArrayObject *)new_bias);
        options.losses = PyArray_DATA((PyArrayObject *)losses);
        qk_status status;
        Py_BEGIN_ALLOW_THREADS
        status = qk_train(self->data, start, &options, pool, &r);
        Py_END_ALLOW_THREADS
        self->in_use = false;
        result = status == QK_OK ? result_dict(&r, new_weight, new_bias, losses)
                                 : qk_raise_of(state, options.device, status, "train");
    }
    Py_XDECREF(new_weight);
    Py_XDECREF(losses);
    Py_XDECREF(new_bias);
    return result;
}

static PyObject *training_start_loss(PyObject *object, PyObject *args) {
    training_object *self = (training_object *)object;
    qk_module_state *state = qk_state_of(object);
    PyObject *start_argument, *pool_argument;
    if (!PyArg_ParseTuple(args, "OO:start_loss", &start_argument, &pool_argument)) return NULL;
    const qk_quantized_layer *start = qk_quantized_layer_from(state, start_argument, self->rows, self->inputs);
    qk_pool *pool = start ? qk_pool_from(state, pool_argument) : NULL;
    if (!pool || !qk_take(&self->in_use, "TrainingData")) return NULL;
    double loss;
    qk_status status;
    Py_BEGIN_ALLOW_THREADS
    status = qk_start_loss(self->data, start, pool, &loss);
    Py_END_ALLOW_THREADS
    self->in_use = false;
    return status == QK_OK ? PyFloat_FromDouble(loss) : qk_raise(status, "start_loss");
}

#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function)
static PyMethodDef training_methods[] = {
    {"add", training_add, METH_VARARGS,
     "add($self, x, y, x_float=None, /)\n--\n\n"
     "The next samples. x: float32, or the 8-bit tensor before its DequantizeLinear. y: float32. x_float: what the "
     "float"
     " graph feeds the layer, float32; for drop_ratio below 1. None of them is copied."},
    {"start_loss", training_start_loss, METH_VARARGS,
     "start_loss($self, start, pool, /)\n--\n\n"
     "The reconstruction loss of the start, over all samples: summed over outputs, mean over output positions."},
    {"train", KEYWORDS(training_train), METH_VARARGS | METH_KEYWORDS,
     "train($self, start, options, pool, *, offered=None, device=None)\n--\n\n"
     "AdaRound or AdaQuant by gradient, from the float weight."},
    {NULL, NULL, 0, NULL}};
static PyType_Slot training_slots[] = {
    {Py_tp_doc,
     "TrainingData(inputs, outputs, *, groups=1, conv=None, holdout=0, x_scale=1.0, x_zero_point=0, stage=None)"
     "\n--\n\n"
     "The samples of one layer, for the gradient loops."},
    {Py_tp_new, training_new},
    {Py_tp_dealloc, training_dealloc},
    {Py_tp_methods, training_methods},
    {0, NULL}};
PyType_Spec qk_training_spec = {.name = "quark.onnx._core.TrainingData",
                                .basicsize = sizeof(training_object),
                                .flags = Py_TPFLAGS_DEFAULT,
                                .slots = training_slots};
