"""Running a quantized model on its integers: logits, perplexity, text."""
