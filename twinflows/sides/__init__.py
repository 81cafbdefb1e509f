"""A flow of either half behind one face of numpy arrays."""
