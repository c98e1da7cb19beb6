/* The steps of a gradient loop on a device: all that moves stays there until the last one. variables.h is the same on
 * the processor. */
#ifndef QK_DEVICE_STEPS_H
#define QK_DEVICE_STEPS_H

#include "loss/device_loss.h"
#include "training/step_loss.h"
#include "training/variables.h"

enum { QK_DEVICE_STEPS = 64 }; /* that are asked for at a time: then their losses are read, and the caller may cancel */

/* Runs all steps, unless early stop ends them, from the variables as they are, whose units are set; then variables and
 * bias are those of the result. loss: made for calls of QK_DEVICE_STEPS batches. QK_E_CANCELLED, QK_E_NOMEM, and what
 * devices give. */
qk_status qk_iterate_on_device(qk_device_loss *loss, qk_step_loss *draws, qk_variables *v, qk_gradient_result *result);

#endif
