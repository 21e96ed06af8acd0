"""What compiler and interpreter say of every kernel, with no GPU."""
