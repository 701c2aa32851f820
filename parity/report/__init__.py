"""Reports: what a run found, for a terminal, a program, a pull request or a browser."""
