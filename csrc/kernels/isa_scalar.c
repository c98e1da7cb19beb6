/* The kernels for any machine (on x86-64: SSE2, which is always there). The reference for the others. */
#define QK_ISA scalar
#include "kernels/body.inc"
