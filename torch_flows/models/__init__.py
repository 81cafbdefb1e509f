"""The named models, one file per family."""
