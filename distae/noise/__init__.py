"""All randomness of distae, keyed."""

from distae.noise.keyed import Noise, Rows, initialising, split_order
from distae.noise.replay import Draw, NoiseRecorder, NoiseReplay, replay

__all__ = ["Draw", "Noise", "NoiseRecorder", "NoiseReplay", "Rows", "initialising", "replay", "split_order"]
