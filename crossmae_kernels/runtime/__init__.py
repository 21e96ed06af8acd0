"""What every op needs around its kernels: checks, dispatch, autocast, devices, launches, tuning."""
