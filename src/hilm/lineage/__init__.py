"""Recognise relatives by their weights alone."""
