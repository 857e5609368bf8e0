"""Time, memory and accuracy of the loss beside other implementations: ``python -m kernel.benchmark``."""
