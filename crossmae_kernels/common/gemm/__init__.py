"""Matrix product with a linear layer's surroundings in its epilogue: bias, GELU, residual."""
