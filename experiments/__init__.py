"""Runs from flags: one of them, or many and their comparison.

``plan`` says which runs, ``runner`` carries them out, ``compare`` puts what they found together.
"""
