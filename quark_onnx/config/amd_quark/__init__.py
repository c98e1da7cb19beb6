"""What scripts for AMD Quark write: ready configurations by name, older classes and enums."""
