"""Images to train and evaluate on: where they come from, how they are read, changed, ordered and put in batches."""
