/* The extension module quark.onnx._core: multi-phase initialisation, state in the module, no globals. */
#define QK_IMPORTS_NUMPY
#include "bindings.h"

#include "base/blas.h"
#include "base/memory.h"

static qk_module_state *state_of_module(PyObject *module) { return PyModule_GetState(module); }

static PyObject *module_isa(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyUnicode_FromString(qk_isa());
}

static PyObject *module_blas_config(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyUnicode_FromString(qk_blas_config());
}

static PyObject *module_fake_quant(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *object;
    qk_affine affine;
    qk_grid grid = {0};
    if (!PyArg_ParseTuple(args, "Ofiii:fake_quant", &object, &affine.scale, &affine.zero_point, &grid.qmin, &grid.qmax))
        return NULL;
    PyArrayObject *x =
        qk_array(object, "x", NPY_FLOAT32, PyArray_Check(object) ? PyArray_SIZE((PyArrayObject *)object) : 0);
    if (!x) return NULL;
    PyArrayObject *y = (PyArrayObject *)PyArray_SimpleNew(PyArray_NDIM(x), PyArray_DIMS(x), NPY_FLOAT32);
    if (!y) return NULL;
    Py_BEGIN_ALLOW_THREADS
    qk_fake_quant(PyArray_DATA(y), PyArray_DATA(x), (size_t)PyArray_SIZE(x), affine, grid);
    Py_END_ALLOW_THREADS
    return (PyObject *)y;
}

static PyObject *module_affine_from_range(PyObject *module, PyObject *args) {
    (void)module;
    double rmin, rmax;
    int symmetric;
    const char *scale_type = NULL;
    qk_grid grid = {0};
    if (!PyArg_ParseTuple(args, "ddiip|s:affine_from_range", &rmin, &rmax, &grid.qmin, &grid.qmax, &symmetric,
                          &scale_type) ||
        !qk_scale_type_from(scale_type, &grid.scale_type))
        return NULL;
    grid.symmetric = symmetric;
    const qk_affine affine = qk_affine_from_range(rmin, rmax, grid);
    return Py_BuildValue("(fi)", affine.scale, affine.zero_point);
}

static PyObject *module_weight_scale(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"weight", "qmin", "qmax", "symmetric", "per_channel", "scale_type", "pool", NULL};
    PyObject *weight_argument, *pool_argument;
    const char *scale_type;
    int symmetric, per_channel;
    qk_scale_problem problem = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O$iippsO:weight_scale", names, &weight_argument, &problem.grid.qmin,
                                     &problem.grid.qmax, &symmetric, &per_channel, &scale_type, &pool_argument) ||
        !qk_scale_type_from(scale_type, &problem.grid.scale_type))
        return NULL;
    problem.grid.symmetric = symmetric;
    problem.per_channel = per_channel;
    qk_pool *pool = qk_pool_from(state_of_module(module), pool_argument);
    const bool is_matrix = PyArray_Check(weight_argument) && PyArray_NDIM((PyArrayObject *)weight_argument) == 2;
    if (pool && !is_matrix) PyErr_SetString(PyExc_ValueError, "weight: an array (rows, inputs) is needed");
    PyArrayObject *weight = pool && is_matrix ? qk_array(weight_argument, "weight", NPY_FLOAT32,
                                                         PyArray_SIZE((PyArrayObject *)weight_argument))
                                              : NULL;
    if (!weight) return NULL;
    const npy_intp rows = PyArray_DIM(weight, 0), count = per_channel ? rows : 1;
    problem.weight = PyArray_DATA(weight);
    qk_affine *affine = PyMem_Calloc((size_t)count + 1, sizeof *affine);
    if (!affine) return PyErr_NoMemory();
    qk_status status;
    Py_BEGIN_ALLOW_THREADS
    status = qk_choose_weight_scale_alone(&problem, rows, PyArray_DIM(weight, 1), affine, pool);
    Py_END_ALLOW_THREADS
    PyObject *result = status == QK_OK ? qk_affine_arrays(affine, count) : qk_raise(status, "weight_scale");
    PyMem_Free(affine);
    return result;
}

static PyObject *module_add_distances(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *have_argument, *want_argument;
    double sum;
    long long samples;
    if (!PyArg_ParseTuple(args, "dOOL:add_distances", &sum, &have_argument, &want_argument, &samples)) return NULL;
    const npy_intp count = PyArray_Check(want_argument) ? PyArray_SIZE((PyArrayObject *)want_argument) : 0;
    PyArrayObject *want = qk_array(want_argument, "want", NPY_FLOAT32, count), *have;
    if (!want || !(have = qk_array(have_argument, "have", NPY_FLOAT32, count))) return NULL;
    if (samples < 1 || count % samples)
        return PyErr_Format(PyExc_ValueError, "samples: a divisor of %zd is needed, not %lld", (Py_ssize_t)count,
                            samples);
    Py_BEGIN_ALLOW_THREADS
    sum = qk_add_distances(sum, PyArray_DATA(have), PyArray_DATA(want), samples, count / samples);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(sum);
}

static PyObject *module_is_better(PyObject *module, PyObject *args) {
    (void)module;
    double score, kept;
    if (!PyArg_ParseTuple(args, "dd:is_better", &score, &kept)) return NULL;
    return PyBool_FromLong(qk_is_better(score, kept));
}

static PyObject *module_unused_memory(PyObject *module, PyObject *args) {
    (void)module;
    (void)args;
    return PyLong_FromSize_t(qk_unused_memory());
}

static PyObject *module_resident_memory(PyObject *module, PyObject *args) {
    (void)module;
    (void)args;
    const qk_resident resident = qk_resident_memory();
    return Py_BuildValue("nn", (Py_ssize_t)resident.now, (Py_ssize_t)resident.peak);
}

static PyObject *module_return_memory(PyObject *module, PyObject *args) {
    (void)module;
    (void)args;
    Py_BEGIN_ALLOW_THREADS
    qk_return_memory();
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"isa", module_isa, METH_NOARGS,
     "isa()\n--\n\nThe kernels in use: 'scalar', 'avx2', 'avx512' or 'avx512vnni'. QK_MAX_ISA caps them."},
    {"blas_config", module_blas_config, METH_NOARGS, "blas_config()\n--\n\nOpenBLAS's description of itself."},
    {"fake_quant", module_fake_quant, METH_VARARGS,
     "fake_quant(x, scale, zero_point, qmin, qmax, /)\n--\n\n"
     "ONNX QuantizeLinear then DequantizeLinear of a float32 array."},
    {"affine_from_range", module_affine_from_range, METH_VARARGS,
     "affine_from_range(rmin, rmax, qmin, qmax, symmetric, scale_type='Float32', /)\n--\n\n"
     "(scale, zero_point) of a value range, as onnxruntime.quantization computes them.\n"
     "'PowerOf2' and 'Int16': with the next larger scale of that kind."},
    {"weight_scale", (PyCFunction)(void (*)(void))module_weight_scale, METH_VARARGS | METH_KEYWORDS,
     "weight_scale(weight, *, qmin, qmax, symmetric, per_channel, scale_type, pool)\n--\n\n"
     "(scale, zero_point) of the weight (rows, inputs) with the least squared error, one each or one a row."},
    {"add_distances", module_add_distances, METH_VARARGS,
     "add_distances(total, have, want, samples, /)\n--\n\n"
     "`total` plus the L2 norm of have - want of each of so many samples: what selective update compares."},
    {"is_better", module_is_better, METH_VARARGS,
     "is_better(score, kept, /)\n--\n\n"
     "Selective update's rule: whether a score, of which lower ones are better, is strictly below the one kept last."},
    {"unused_memory", module_unused_memory, METH_NOARGS,
     "unused_memory()\n--\n\n"
     "Bytes that the process has beside what it allocated: code, and what the C library keeps of freed memory."},
    {"resident_memory", module_resident_memory, METH_NOARGS,
     "resident_memory()\n--\n\n"
     "(now, peak): bytes that the process has, and the most it has had; 0 where the system does not tell."},
    {"return_memory", module_return_memory, METH_NOARGS,
     "return_memory()\n--\n\nGive back to the system what the C library keeps of freed memory."},
    {NULL, NULL, 0, NULL}};

qk_module_state *qk_state_of(PyObject *self) { return PyType_GetModuleState(Py_TYPE(self)); }

static bool add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type) {
    *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *type && PyModule_AddType(module, *type) == 0;
}

static int module_exec(PyObject *module) {
    import_array1(-1);
    if (!qk_isa_cap_is_known()) {
        PyErr_Format(PyExc_ImportError,
                     "the environment variable QK_MAX_ISA is '%s': use scalar, avx2, avx512 or avx512vnni, or unset it",
                     getenv("QK_MAX_ISA"));
        return -1;
    }
    qk_module_state *state = state_of_module(module);
    state->device_error = PyErr_NewExceptionWithDoc(
        "quark.onnx._core.DeviceError",
        "A device cannot be used, or failed; it says why, with its compiler's log if that refused the kernels.",
        PyExc_RuntimeError, NULL);
    if (!state->device_error || PyModule_AddObjectRef(module, "DeviceError", state->device_error) < 0) return -1;
    return add_type(module, &qk_pool_spec, &state->pool_type) &&
                   add_type(module, &qk_ranges_spec, &state->ranges_type) &&
                   add_type(module, &qk_layer_spec, &state->layer_type) &&
                   add_type(module, &qk_training_spec, &state->training_type) &&
                   add_type(module, &qk_quantized_layer_spec, &state->quantized_layer_type) &&
                   add_type(module, &qk_options_spec, &state->options_type) &&
                   add_type(module, &qk_device_spec, &state->device_type)
               ? 0
               : -1;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    qk_module_state *state = state_of_module(module);
    Py_VISIT(state->pool_type);
    Py_VISIT(state->ranges_type);
    Py_VISIT(state->layer_type);
    Py_VISIT(state->training_type);
    Py_VISIT(state->quantized_layer_type);
    Py_VISIT(state->options_type);
    Py_VISIT(state->device_type);
    Py_VISIT(state->device_error);
    return 0;
}

static int module_clear(PyObject *module) {
    qk_module_state *state = state_of_module(module);
    Py_CLEAR(state->pool_type);
    Py_CLEAR(state->ranges_type);
    Py_CLEAR(state->layer_type);
    Py_CLEAR(state->training_type);
    Py_CLEAR(state->quantized_layer_type);
    Py_CLEAR(state->options_type);
    Py_CLEAR(state->device_type);
    Py_CLEAR(state->device_error);
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED}, /* as NumPy */
#endif
    {0, NULL}};

PyModuleDef qk_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "quark.onnx._core",
    .m_doc = "The C core: calibration statistics, layer moments and solvers.",
    .m_size = sizeof(qk_module_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&qk_module); }
