/* What onnxruntime calls in a library that is registered for custom operators: a status, NULL for success. Quantized
 * models need none, but scripts for AMD Quark register a library (quark.onnx.operators.custom_ops). */

__attribute__((visibility("default"))) void *RegisterCustomOps(void *options, const void *api);

void *RegisterCustomOps(void *options, const void *api) {
    (void)options;
    (void)api;
    return 0;
}
