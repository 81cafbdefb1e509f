"""The bijectors, one file per family."""
