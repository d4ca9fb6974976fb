"""Other trainers as contestants, each in a module that imports it."""

import importlib.util


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
