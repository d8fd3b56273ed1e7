"""Encoders and decoders: layers with named weights, torch modules, and built-in architectures."""
