"""Trained models in use: what they say of pictures, and how fast."""
