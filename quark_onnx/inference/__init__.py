"""Running models with onnxruntime: sessions, models beyond 2 GB, devices."""
