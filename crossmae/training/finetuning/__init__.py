"""Fine-tuning an encoder for classification."""
