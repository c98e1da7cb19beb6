#include "bindings.h"

PyObject *qk_raise(qk_status status, const char *what) {
    switch (status) {
    case QK_E_NOMEM: return PyErr_NoMemory();
    case QK_E_CANCELLED:
        /* The callback left its exception; a plain stop is KeyboardInterrupt. */
        if (!PyErr_Occurred()) PyErr_SetNone(PyExc_KeyboardInterrupt);
        return NULL;
    case QK_OK:
    case QK_E_ARG:
    case QK_E_SHAPE:
    case QK_E_NONFINITE:
    case QK_E_TOO_LARGE:
    case QK_E_NO_ROWS:
    case QK_E_DEVICE:
    case QK_E_DEVICE_NOMEM: break;
    }
    return PyErr_Format(PyExc_ValueError, "%s: %s", what, qk_strerror(status));
}
