"""Parity: is a recurrent module torch.nn's? `python -m parity --help`.

    grid      which cases there are, their names, how to choose
    run       case -> numbers -> module -> observations (reference and subject alike)
    compare   observations -> differences, with a verdict each
    contract  everything that is not a number: signatures, keys, messages
    faults    planted mistakes, which the above must find
    engine    many cases on several processes
    report    text and JSON

The subject is a module name; nothing here imports the package under test.
"""
