"""Typed settings of everything, from TOML files and the command line. Imports no torch."""

from distae.config.check import check
from distae.config.cli import Command, build, parse, write_toml
from distae.config.fields import leaves, to_dict
from distae.config.train import MAY_CHANGE, TrainConfig

__all__ = ["MAY_CHANGE", "Command", "TrainConfig", "build", "check", "leaves", "parse", "to_dict", "write_toml"]
