"""Times that others published beside those that ``crossmae_kernels.audit`` predicts."""
