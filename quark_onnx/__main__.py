"""`python -m quark.onnx` is the command `quark-onnx`."""

import sys

from quark.onnx.cli.main import main

sys.exit(main())
