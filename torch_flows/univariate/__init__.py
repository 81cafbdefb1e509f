"""Maps of one variable, one file per family."""
