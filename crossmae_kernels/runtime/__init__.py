"""Infrastructure that all ops share: checks, dispatch, autocast, devices, launches, tuning."""
