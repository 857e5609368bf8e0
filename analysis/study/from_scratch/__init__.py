"""Transformers trained from scratch, on languages of known truth (S11) and on real text (S12): hidden size times vocabulary.

One trunk, a bottleneck of width D in front of the head, and a vocabulary that grows while the difficulty stays.
"""
