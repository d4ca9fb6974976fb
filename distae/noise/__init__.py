"""All randomness of distae, keyed."""

from distae.noise.keyed import Noise, Rows, initialising, split_order
from distae.noise.replay import Draw, Given, Recorder, redraw

__all__ = ["Draw", "Given", "Noise", "Recorder", "Rows", "initialising", "redraw", "split_order"]
