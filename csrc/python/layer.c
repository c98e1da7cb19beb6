/* The Python side of moments/layer.c. Layer: one layer from batches of data to a weight scale or to finetuned integers.
 */
#include "bindings.h"

typedef struct {
    PyObject_HEAD
    qk_layer *layer;
    qk_affine x_affine;
    PyObject *device_object; /* keeps the device open; None: the processor makes moments */
    qk_device *device;
    bool in_use;
} layer_object;

/* ---- construction ---------------------------------------------------------------------------- */

static PyObject *layer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"inputs", "outputs", "samples",      "max_rows", "groups",  "conv",   "holdout", "seed",
                            "target", "x_scale", "x_zero_point", "kept",     "thinned", "device", NULL};
    long long inputs, outputs, groups = 1, samples, max_rows, kept = 0;
    unsigned long long seed = 0;
    int holdout = 0, target = 1, thinned = 0;
    qk_affine affine = {1.0f, 0};
    PyObject *conv = Py_None, *device_argument = Py_None;
    qk_device *device;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLLL|$LOiKpfiLpO:Layer", names, &inputs, &outputs, &samples,
                                     &max_rows, &groups, &conv, &holdout, &seed, &target, &affine.scale,
                                     &affine.zero_point, &kept, &thinned, &device_argument) ||
        !qk_device_from(PyType_GetModuleState(type), device_argument, &device))
        return NULL;
    qk_geometry geometry = {.inputs = inputs, .outputs = outputs, .groups = groups};
    if (!qk_conv_from(conv, &geometry)) return NULL;
    const qk_row_choice rows = {
        .samples = samples, .max_rows = max_rows, .holdout = holdout, .seed = seed, .kept = kept, .thinned = thinned};
    layer_object *self = (layer_object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->x_affine = affine;
    self->device_object = Py_NewRef(device_argument);
    self->device = device;
    qk_status status;
    Py_BEGIN_ALLOW_THREADS
    status = qk_layer_new(&self->layer, &geometry, &rows, target);
    Py_END_ALLOW_THREADS
    if (status != QK_OK) {
        Py_DECREF(self);
        return qk_raise(status, "Layer");
    }
    if (device) qk_layer_use_device(self->layer, device);
    return (PyObject *)self;
}

static void layer_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    layer_object *self = (layer_object *)object;
    if (self->device) {
        Py_BEGIN_ALLOW_THREADS /* another thread may have the device, and wait for the GIL */
        qk_layer_free(self->layer);
        Py_END_ALLOW_THREADS
    } else {
        qk_layer_free(self->layer);
    }
    Py_XDECREF(self->device_object);
    type->tp_free(object);
    Py_DECREF(type);
}

/* ---- feeding --------------------------------------------------------------------------------- */

static PyObject *layer_feed(PyObject *object, PyObject *args) {
    layer_object *self = (layer_object *)object;
    PyObject *x_argument, *y_argument, *pool_argument;
    if (!PyArg_ParseTuple(args, "OOO:feed", &x_argument, &y_argument, &pool_argument)) return NULL;
    qk_pool *pool = qk_pool_from(qk_state_of(object), pool_argument);
    qk_tensor x, y;
    const bool has_y = y_argument != Py_None;
    if (!pool || !qk_tensor_from(x_argument, "x", self->x_affine, &x) ||
        (has_y && !qk_tensor_from(y_argument, "y", (qk_affine){1.0f, 0}, &y)))
        return NULL;
    if (!qk_take(&self->in_use, "Layer")) return NULL;
    qk_status status;
    Py_BEGIN_ALLOW_THREADS
    status = qk_layer_feed(self->layer, &x, has_y ? &y : NULL, pool);
    Py_END_ALLOW_THREADS
    self->in_use = false;
    if (status != QK_OK) return qk_raise_of(qk_state_of(object), self->device, status, "feed");
    Py_RETURN_NONE;
}

static PyObject *layer_extent(PyObject *object, PyObject *argument) {
    layer_object *self = (layer_object *)object;
    qk_tensor x;
    if (!qk_tensor_from(argument, "x", self->x_affine, &x)) return NULL;
    int64_t samples, positions;
    const qk_status status = qk_layer_extent(self->layer, &x, &samples, &positions);
    return status == QK_OK ? Py_BuildValue("(LL)", (long long)samples, (long long)positions)
                           : qk_raise(status, "extent");
}

/* Takes the Layer and adds what waits. The caller gives it back with `in_use = false` unless this is false. */
static bool take_flushed(layer_object *self, qk_pool *pool) {
    if (!qk_take(&self->in_use, "Layer")) return false;
    qk_status status;
    Py_BEGIN_ALLOW_THREADS
    status = qk_layer_flush(self->layer, pool);
    Py_END_ALLOW_THREADS
    if (status == QK_OK) return true;
    self->in_use = false;
    qk_raise_of(qk_state_of((PyObject *)self), self->device, status, "Layer");
    return false;
}

static PyObject *layer_join(PyObject *object, PyObject *args) {
    PyObject *other, *pool_argument;
    if (!PyArg_ParseTuple(args, "O!O:join", Py_TYPE(object), &other, &pool_argument)) return NULL;
    qk_pool *pool = qk_pool_from(qk_state_of(object), pool_argument);
    layer_object *self = (layer_object *)object, *from = (layer_object *)other;
    if (self == from) return qk_raise(QK_E_ARG, "join: the layers are not alike");
    if (!pool || !take_flushed(self, pool)) return NULL;
    qk_status status = QK_OK;
    const bool both = take_flushed(from, pool);
    if (both) {
        Py_BEGIN_ALLOW_THREADS
        status = qk_layer_join(self->layer, from->layer, pool);
        Py_END_ALLOW_THREADS
        from->in_use = false;
    }
    self->in_use = false;
    if (!both) return NULL;
    return status == QK_OK ? Py_NewRef(Py_None) : qk_raise(status, "join: the layers are not alike");
}

/* ---- moments, for tests and reports ---------------------------------------------------------- */

/* The moments of a Layer that is taken. */
static PyObject *moments_of(const qk_layer *layer, qk_set set) {
    const qk_geometry *g = qk_layer_geometry(layer);
    const int64_t rows = qk_layer_rows(layer, set);
    if (rows == 0) return qk_raise(QK_E_NO_ROWS, "moments");
    const npy_intp gram_dims[] = {g->groups, g->inputs, g->inputs}, cross_dims[] = {g->groups, g->outputs, g->inputs};
    const npy_intp x_dims[] = {g->groups, g->inputs}, y_dims[] = {g->groups, g->outputs};
    PyObject *gram = qk_new_array(3, gram_dims, NPY_FLOAT64), *cross = qk_new_array(3, cross_dims, NPY_FLOAT64);
    PyObject *mean_x = qk_new_array(2, x_dims, NPY_FLOAT64), *mean_y = qk_new_array(2, y_dims, NPY_FLOAT64);
    PyObject *power = qk_new_array(2, y_dims, NPY_FLOAT64), *result = NULL;
    if (gram && cross && mean_x && mean_y && power) {
        PyArray_FILLWBYTE((PyArrayObject *)cross, 0);
        PyArray_FILLWBYTE((PyArrayObject *)mean_y, 0);
        PyArray_FILLWBYTE((PyArrayObject *)power, 0);
        qk_status status;
        Py_BEGIN_ALLOW_THREADS
        status = qk_layer_moments(layer, set, PyArray_DATA((PyArrayObject *)gram), PyArray_DATA((PyArrayObject *)cross),
                                  PyArray_DATA((PyArrayObject *)mean_x), PyArray_DATA((PyArrayObject *)mean_y),
                                  PyArray_DATA((PyArrayObject *)power));
        Py_END_ALLOW_THREADS
        result = status == QK_OK ? Py_BuildValue("(LOOOOO)", (long long)rows, gram, cross, mean_x, mean_y, power)
                                 : qk_raise(status, "moments");
    }
    Py_XDECREF(gram);
    Py_XDECREF(cross);
    Py_XDECREF(mean_x);
    Py_XDECREF(mean_y);
    Py_XDECREF(power);
    return result;
}

static PyObject *layer_moments(PyObject *object, PyObject *args) {
    layer_object *self = (layer_object *)object;
    PyObject *pool_argument;
    int held_out = 0;
    if (!PyArg_ParseTuple(args, "Op:moments", &pool_argument, &held_out)) return NULL;
    qk_pool *pool = qk_pool_from(qk_state_of(object), pool_argument);
    if (!pool || !take_flushed(self, pool)) return NULL;
    qk_status status;
    Py_BEGIN_ALLOW_THREADS
    status = qk_layer_make_moments(self->layer, pool);
    Py_END_ALLOW_THREADS
    PyObject *result =
        status == QK_OK ? moments_of(self->layer, held_out ? QK_HELD_OUT : QK_FITTED) : qk_raise(status, "moments");
    self->in_use = false;
    return result;
}

static PyObject *layer_mean_input(PyObject *object, PyObject *pool_argument) {
    layer_object *self = (layer_object *)object;
    qk_pool *pool = qk_pool_from(qk_state_of(object), pool_argument);
    const qk_geometry *g = qk_layer_geometry(self->layer);
    PyObject *mean = pool ? qk_new_array(2, (npy_intp[]){g->groups, g->inputs}, NPY_FLOAT64) : NULL;
    if (!mean || !take_flushed(self, pool)) {
        Py_XDECREF(mean);
        return NULL;
    }
    const qk_status status = qk_layer_mean_input(self->layer, QK_FITTED, PyArray_DATA((PyArrayObject *)mean));
    self->in_use = false;
    if (status == QK_OK) return mean;
    Py_DECREF(mean);
    return qk_raise(status, "mean_input");
}

/* ---- weight scale ---------------------------------------------------------------------------- */

static PyObject *layer_weight_scale(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"weight",    "qmin",       "qmax", "symmetric", "per_channel",
                            "bias_free", "scale_type", "pool", NULL};
    layer_object *self = (layer_object *)object;
    PyObject *weight_argument, *pool_argument;
    const char *scale_type;
    int symmetric, per_channel, bias_free;
    qk_scale_problem problem = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O$iipppsO:weight_scale", names, &weight_argument,
                                     &problem.grid.qmin, &problem.grid.qmax, &symmetric, &per_channel, &bias_free,
                                     &scale_type, &pool_argument) ||
        !qk_scale_type_from(scale_type, &problem.grid.scale_type))
        return NULL;
    problem.grid.symmetric = symmetric;
    problem.per_channel = per_channel;
    problem.bias_free = bias_free;
    qk_pool *pool = qk_pool_from(qk_state_of(object), pool_argument);
    const qk_geometry *g = qk_layer_geometry(self->layer);
    const npy_intp rows = g->groups * g->outputs, count = per_channel ? rows : 1;
    PyArrayObject *weight = pool ? qk_array(weight_argument, "weight", NPY_FLOAT32, rows * g->inputs) : NULL;
    if (!weight) return NULL;
    problem.weight = PyArray_DATA(weight);
    qk_affine *affine = PyMem_Calloc((size_t)count, sizeof *affine);
    if (!affine) return PyErr_NoMemory();
    if (!take_flushed(self, pool)) {
        PyMem_Free(affine);
        return NULL;
    }
    qk_status status;
    Py_BEGIN_ALLOW_THREADS
    status = qk_choose_weight_scale(self->layer, &problem, affine, pool);
    Py_END_ALLOW_THREADS
    self->in_use = false;
    PyObject *result = status == QK_OK ? qk_affine_arrays(affine, count) : qk_raise(status, "weight_scale");
    PyMem_Free(affine);
    return result;
}

/* ---- least squares --------------------------------------------------------------------------- */

static const char *candidate_name(qk_candidate candidate) {
    switch (candidate) {
    case QK_START:
    case QK_CANDIDATES: return "unchanged";
    case QK_BIAS_ONLY: return "bias only";
    case QK_DESCENT: return "coordinate descent";
    case QK_ROUNDING_DESCENT: return "GPTQ + coordinate descent";
    }
    return "unknown";
}

static PyObject *result_dict(const qk_layer *layer, const qk_least_squares_result *r, PyObject *weight_q,
                             PyObject *bias_q) {
    return Py_BuildValue("{s:O,s:L,s:O,s:O,s:s,s:(dd),s:(dd),s:(dd),s:(LL),s:L,s:O,s:O}", "accepted",
                         r->improved > 0 ? Py_True : Py_False, "improved", (long long)r->improved, "weight", weight_q,
                         "bias", bias_q, "candidate", candidate_name(r->candidate), "before", r->before[QK_FITTED],
                         r->before[QK_HELD_OUT], "after", r->after[QK_FITTED], r->after[QK_HELD_OUT], "power",
                         r->power[QK_FITTED], r->power[QK_HELD_OUT], "rows", (long long)qk_layer_rows(layer, QK_FITTED),
                         (long long)qk_layer_rows(layer, QK_HELD_OUT), "one_row_in", (long long)r->one_row_in,
                         "float64_factor", r->float64_factor ? Py_True : Py_False, "pilot_alone",
                         r->pilot_alone ? Py_True : Py_False);
}

static PyObject *layer_least_squares(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"start", "pool", "update_bias", "free", "damping", "max_sweeps", NULL};
    layer_object *self = (layer_object *)object;
    qk_module_state *state = qk_state_of(object);
    PyObject *start_argument, *damping, *pool_argument;
    qk_least_squares_options options = {.cancelled = qk_cancelled, .part_from = QK_PART_FROM};
    int update_bias, is_free;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO$ppOi:least_squares", names, &start_argument, &pool_argument,
                                     &update_bias, &is_free, &damping, &options.max_sweeps))
        return NULL;
    const qk_geometry *g = qk_layer_geometry(self->layer);
    const npy_intp rows = g->groups * g->outputs, dims[] = {rows, g->inputs};
    const qk_quantized_layer *start = qk_quantized_layer_from(state, start_argument, rows, g->inputs);
    qk_pool *pool = start ? qk_pool_from(state, pool_argument) : NULL;
    PyArrayObject *d;
    if (!pool || !(d = qk_array(damping, "damping", NPY_FLOAT64,
                                PyArray_Check(damping) ? PyArray_SIZE((PyArrayObject *)damping) : 0)))
        return NULL;
    options.user = pool_argument;
    options.rounding = is_free ? QK_ANY_INTEGER : QK_FLOOR_OR_CEIL;
    options.update_bias = update_bias;
    options.damping = PyArray_DATA(d);
    options.damping_count = (int)PyArray_SIZE(d);

    PyObject *new_weight = qk_new_array(2, dims, NPY_INT32);
    PyObject *new_bias =
        start->bias && start->bias_scale && update_bias ? qk_new_array(1, &rows, NPY_INT32) : Py_NewRef(Py_None);
    PyObject *result = NULL;
    if (new_weight && new_bias && take_flushed(self, pool)) {
        qk_least_squares_result r = {.weight_q = PyArray_DATA((PyArrayObject *)new_weight)};
        if (new_bias != Py_None) {
            PyArray_FILLWBYTE((PyArrayObject *)new_bias, 0);
            r.bias_q = PyArray_DATA((PyArrayObject *)new_bias);
        }
        qk_status status;
        Py_BEGIN_ALLOW_THREADS
        status = qk_least_squares(self->layer, start, &options, pool, &r);
        Py_END_ALLOW_THREADS
        result =
            status == QK_OK ? result_dict(self->layer, &r, new_weight, new_bias) : qk_raise(status, "least_squares");
        self->in_use = false;
    }
    Py_XDECREF(new_weight);
    Py_XDECREF(new_bias);
    return result;
}

static PyObject *layer_moments_by(PyObject *object, void *closure) {
    static const char *const names[] = {[QK_NO_DEVICE] = "cpu",
                                        [QK_ON_DEVICE] = "device",
                                        [QK_DEVICE_HAS_NO_ROWS] = "few rows",
                                        [QK_DEVICE_HAS_NO_PHASES] = "phases",
                                        [QK_DEVICE_IS_FULL] = "memory"};
    (void)closure;
    return PyUnicode_FromString(names[qk_layer_device_use(((layer_object *)object)->layer)]);
}

/* ---- type ------------------------------------------------------------------------------------ */

#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function)
static PyMethodDef layer_methods[] = {
    {"feed", layer_feed, METH_VARARGS,
     "feed($self, x, y, pool, /)\n--\n\n"
     "The next samples. x: float32, or the 8-bit tensor before its DequantizeLinear. y: float32, None without target."},
    {"extent", layer_extent, METH_O,
     "extent($self, x, /)\n--\n\n(samples, positions of each) of a tensor as `feed` takes it: the rows that it can "
     "give."},
    {"join", layer_join, METH_VARARGS,
     "join($self, other, pool, /)\n--\n\nAdd the rows of another layer with the same weight to this one's."},
    {"mean_input", layer_mean_input, METH_O,
     "mean_input($self, pool, /)\n--\n\nThe mean of the fitted rows' inputs (groups, K)."},
    {"moments", layer_moments, METH_VARARGS,
     "moments($self, pool, held_out, /)\n--\n\n(rows, gram, cross, mean_x, mean_y, power) per row and group."},
    {"weight_scale", KEYWORDS(layer_weight_scale), METH_VARARGS | METH_KEYWORDS,
     "weight_scale($self, weight, *, qmin, qmax, symmetric, per_channel, bias_free, scale_type, pool)\n--\n\n"
     "(scale, zero_point) of the weight (rows, K) with the least output error."},
    {"least_squares", KEYWORDS(layer_least_squares), METH_VARARGS | METH_KEYWORDS,
     "least_squares($self, start, pool, *, update_bias, free, damping, max_sweeps)\n--\n\n"
     "Integer weight and bias with the least output error, chosen on held-out rows."},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef layer_getset[] = {
    {"moments_by", layer_moments_by, NULL,
     "What makes the moments: 'device', or why it is not the device: 'cpu' (there is none), 'few rows', 'phases' (a "
     "strided ConvTranspose) or 'memory'.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot layer_slots[] = {
    {Py_tp_doc, "Layer(inputs, outputs, samples, max_rows, *, groups=1, conv=None, holdout=0, seed=0, target=True,"
                " x_scale=1.0, x_zero_point=0, kept=0, thinned=False, device=None)\n--\n\n"
                "Moments of one layer's data: feed batches, then ask for a weight scale or for finetuned integers."},
    {Py_tp_new, layer_new},
    {Py_tp_dealloc, layer_dealloc},
    {Py_tp_methods, layer_methods},
    {Py_tp_getset, layer_getset},
    {0, NULL}};
PyType_Spec qk_layer_spec = {.name = "quark.onnx._core.Layer",
                             .basicsize = sizeof(layer_object),
                             .flags = Py_TPFLAGS_DEFAULT,
                             .slots = layer_slots};
