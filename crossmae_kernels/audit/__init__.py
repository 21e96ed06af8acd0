"""What the compiler and the interpreter tell about every kernel, without a GPU."""
