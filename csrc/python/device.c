/* The Python side of device/device.c. Device: where layers compute beside the processor. */
#include "bindings.h"

typedef struct {
    PyObject_HEAD
    qk_device *device;
} device_object;

static PyObject *device_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"index", "platform", "most_bytes", NULL};
    long long index, most_bytes = 0;
    PyObject *platform = Py_None;
    char message[QK_DEVICE_MESSAGE];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "L|$OL:Device", names, &index, &platform, &most_bytes)) return NULL;
    qk_device_choice choice = {.index = index, .any_kind = platform != Py_None, .most_bytes = most_bytes};
    if (choice.any_kind && (choice.platform = PyLong_AsLongLong(platform)) == -1 && PyErr_Occurred()) return NULL;
    device_object *self = (device_object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    qk_status status;
    Py_BEGIN_ALLOW_THREADS
    status = qk_device_open(&self->device, &choice, message);
    Py_END_ALLOW_THREADS
    if (status == QK_OK) return (PyObject *)self;
    Py_DECREF(self);
    if (status == QK_E_NOMEM) return PyErr_NoMemory();
    PyErr_SetString(((qk_module_state *)PyType_GetModuleState(type))->device_error, message);
    return NULL;
}

static void device_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    qk_device_close(((device_object *)object)->device);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *device_name(PyObject *self, void *closure) {
    (void)closure;
    return PyUnicode_DecodeUTF8(qk_device_name(((device_object *)self)->device),
                                (Py_ssize_t)strlen(qk_device_name(((device_object *)self)->device)), "replace");
}

static PyObject *device_is_lost(PyObject *self, void *closure) {
    (void)closure;
    return PyBool_FromLong(qk_device_is_lost(((device_object *)self)->device));
}

bool qk_device_from(qk_module_state *state, PyObject *object, qk_device **device) {
    *device = NULL;
    if (object == Py_None) return true;
    if (!PyObject_TypeCheck(object, state->device_type)) {
        PyErr_Format(PyExc_TypeError, "device: a Device or None is needed, not %s", Py_TYPE(object)->tp_name);
        return false;
    }
    *device = ((device_object *)object)->device;
    return true;
}

PyObject *qk_raise_of(qk_module_state *state, qk_device *device, qk_status status, const char *what) {
    char message[QK_DEVICE_MESSAGE];
    if (!device || (status != QK_E_DEVICE && status != QK_E_DEVICE_NOMEM)) return qk_raise(status, what);
    Py_BEGIN_ALLOW_THREADS /* another thread may have the device, and wait for the GIL */
    qk_device_message(device, message);
    Py_END_ALLOW_THREADS
    PyErr_SetString(status == QK_E_DEVICE ? state->device_error : PyExc_MemoryError, message);
    return NULL;
}

static PyGetSetDef device_getset[] = {{"name", device_name, NULL, "What its driver calls it.", NULL},
                                      {"is_lost", device_is_lost, NULL, "Whether it failed, for good.", NULL},
                                      {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot device_slots[] = {{Py_tp_doc,
                                      "Device(index, *, platform=None, most_bytes=0)\n--\n\n"
                                      "A device that computes beside the processor, by OpenCL. Threads may share it."},
                                     {Py_tp_new, device_new},
                                     {Py_tp_dealloc, device_dealloc},
                                     {Py_tp_getset, device_getset},
                                     {0, NULL}};
PyType_Spec qk_device_spec = {.name = "quark.onnx._core.Device",
                              .basicsize = sizeof(device_object),
                              .flags = Py_TPFLAGS_DEFAULT,
                              .slots = device_slots};
