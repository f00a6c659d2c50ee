"""Models on PyTorch; each room below needs the ``torch`` extra."""
