"""Pretraining and evaluation of encoders."""
