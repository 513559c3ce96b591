"""Encoders, heads, and the network that joins them."""

from models.segmentor import build_segmentor

__all__ = ["build_segmentor"]
