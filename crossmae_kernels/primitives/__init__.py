"""Kernels that several ops share, one per file: device code and launcher."""
