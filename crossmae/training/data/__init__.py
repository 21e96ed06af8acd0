"""Images to train and evaluate on: finding, decoding, augmenting, ordering and batching them."""
