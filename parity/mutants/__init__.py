"""Mutants: one catalogue of mistakes, planted to prove the harness and searched to name what a module does."""
