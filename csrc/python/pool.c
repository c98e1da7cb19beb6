/* The Python side of base/pool.c. ThreadPool: the threads of the core, shared by the objects that work with it. */
#include "bindings.h"

#include "base/blas.h"

typedef struct {
    PyObject_HEAD
    qk_pool *pool;
    bool cancelled; /* read and written with the GIL held */
} pool_object;

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"threads", NULL};
    int threads;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i:ThreadPool", names, &threads)) return NULL;
    if (threads < 1 || threads > QK_MOST_THREADS)
        return PyErr_Format(PyExc_ValueError, "threads: 1 to %d are needed, not %d", QK_MOST_THREADS, threads);
    pool_object *self = (pool_object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    if (qk_blas_reserve()) self->pool = qk_pool_new(threads);
    if (!self->pool) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void pool_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    qk_pool_free(((pool_object *)object)->pool);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *pool_threads(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromLong(qk_pool_threads(((pool_object *)self)->pool));
}

qk_pool *qk_pool_from(qk_module_state *state, PyObject *object) {
    if (!PyObject_TypeCheck(object, state->pool_type)) {
        PyErr_Format(PyExc_TypeError, "pool: a ThreadPool is needed, not %s", Py_TYPE(object)->tp_name);
        return NULL;
    }
    return ((pool_object *)object)->pool;
}

static PyObject *pool_cancel(PyObject *self, PyObject *unused) {
    (void)unused;
    ((pool_object *)self)->cancelled = true;
    Py_RETURN_NONE;
}

bool qk_pool_is_cancelled(PyObject *pool) { return ((pool_object *)pool)->cancelled; }

static PyMethodDef pool_methods[] = {
    {"cancel", pool_cancel, METH_NOARGS,
     "cancel($self, /)\n--\n\n"
     "End the solvers that work with this pool, in any thread, now and later: they raise KeyboardInterrupt."},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef pool_getset[] = {{"threads", pool_threads, NULL, "Number of threads, the caller's included.", NULL},
                                    {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot pool_slots[] = {
    {Py_tp_doc, "ThreadPool(threads)\n--\n\nThreads of the core. Results do not depend on how many there are."},
    {Py_tp_new, pool_new},
    {Py_tp_dealloc, pool_dealloc},
    {Py_tp_methods, pool_methods},
    {Py_tp_getset, pool_getset},
    {0, NULL}};
PyType_Spec qk_pool_spec = {.name = "quark.onnx._core.ThreadPool",
                            .basicsize = sizeof(pool_object),
                            .flags = Py_TPFLAGS_DEFAULT,
                            .slots = pool_slots};
