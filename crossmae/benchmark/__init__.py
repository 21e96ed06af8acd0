"""Time CrossMAE's and MAE's decoders in turn on this machine, beside counts of their arithmetic."""
