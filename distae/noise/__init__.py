"""All randomness of distae, keyed."""

from distae.noise.keyed import ORDER, Noise, Rows, initialising, keyed_order, split_order
from distae.noise.permutation import KeyedPermutation
from distae.noise.replay import Draw, NoiseRecorder, NoiseReplay, replay
from distae.noise.weights import reset_parameters

__all__ = [
    "ORDER",
    "Draw",
    "KeyedPermutation",
    "Noise",
    "NoiseRecorder",
    "NoiseReplay",
    "Rows",
    "initialising",
    "keyed_order",
    "replay",
    "reset_parameters",
    "split_order",
]
