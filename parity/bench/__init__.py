"""The bench: what PyTorch can do with a subject, how fast it is, how much memory it takes."""

import argparse


def measure(argv: list[str]) -> int:
    """Run `python -m parity speed`: for a CPU, for a GPU where --device or --dry asks for it, or on ragged rows."""
    from . import gpu, ragged, speed

    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--device", default="cpu")
    which.add_argument("--dry", action="store_true")
    which.add_argument("--ragged", action="store_true")
    given, _ = which.parse_known_args(argv)
    if given.ragged:
        return ragged.main(argv)
    return gpu.main(argv) if given.dry or given.device != "cpu" else speed.main(argv)
