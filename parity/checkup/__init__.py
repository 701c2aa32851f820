"""The checkup: is anybody's module torch.nn's, and if not, why?"""
