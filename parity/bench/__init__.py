"""The bench: what PyTorch can do with a subject, how fast it is, how much memory it takes."""
