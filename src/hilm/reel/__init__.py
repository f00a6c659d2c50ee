"""Checkpoints as video files that decode bit for bit."""
