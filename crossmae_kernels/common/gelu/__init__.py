"""GELU by the error function, as a part of kernels, and the pass that undoes it."""
