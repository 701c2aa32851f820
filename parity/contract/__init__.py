"""The contract: ask torch.nn and a subject the same questions about everything that isn't a number."""
