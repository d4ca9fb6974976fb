"""All randomness of distae, keyed."""

from distae.noise.keyed import ORDER, Noise, Rows, initialising, split_order
from distae.noise.replay import Draw, NoiseRecorder, NoiseReplay, replay
from distae.noise.weights import reset_parameters

__all__ = [
    "ORDER",
    "Draw",
    "Noise",
    "NoiseRecorder",
    "NoiseReplay",
    "Rows",
    "initialising",
    "replay",
    "reset_parameters",
    "split_order",
]
