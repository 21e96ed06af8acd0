"""Decoders of CrossMAE and MAE, timed in turn on this machine beside what their arithmetic predicts."""
