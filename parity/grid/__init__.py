"""The grid: run cases on torch.nn and on a subject, and compare what both show."""
