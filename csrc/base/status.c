#include "qk.h"

const char *qk_strerror(qk_status status) {
    switch (status) {
    case QK_OK: return "no error";
    case QK_E_NOMEM: return "out of memory";
    case QK_E_ARG: return "an argument is out of range";
    case QK_E_SHAPE: return "the shape of the data does not fit the layer";
    case QK_E_NONFINITE: return "the data contains NaN or Inf";
    case QK_E_TOO_LARGE: return "the values are too large to be squared, from about 1e18 on";
    case QK_E_CANCELLED: return "cancelled";
    case QK_E_DEVICE: return "a device cannot be used";
    case QK_E_DEVICE_NOMEM: return "a device is out of memory";
    case QK_E_NO_ROWS: return "too little data: no row to fit on or none to hold out";
    }
    return "unknown status";
}
