"""Networks and layers."""

from distae.nn.networks import build_decoder, build_encoder, register_net

__all__ = ["build_decoder", "build_encoder", "register_net"]
