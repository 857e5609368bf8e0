"""Transformers trained from scratch: hidden size times vocabulary, with everything else fixed (S11).

One trunk, a bottleneck of width D in front of the head, and a vocabulary that grows while the difficulty stays.
"""
