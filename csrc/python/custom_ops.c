/* The C side of quark_onnx/operators/custom_ops.py: what onnxruntime calls in a library that is registered for custom
 * operators. It returns a status, NULL for success. Quantized models need no such library, but scripts register one. */

__attribute__((visibility("default"))) void *RegisterCustomOps(void *options, const void *api);

void *RegisterCustomOps(void *options, const void *api) {
    (void)options;
    (void)api;
    return 0;
}
