"""Data sets, image features, tokenizer and batches for the training recipes."""
