"""Networks and layers."""

from distae.nn.networks import build_decoder, build_encoder, register_net
from distae.nn.perceptual import register_perceptual_network

__all__ = ["build_decoder", "build_encoder", "register_net", "register_perceptual_network"]
