"""Prove that two implementations of one model agree, or name the first place where they part."""
