"""Modules as people write them: most with one mistake, some without. The tables say what is to be found in each."""
