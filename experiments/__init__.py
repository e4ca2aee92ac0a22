"""Network-condition benchmarking: many runs of `launch`, one after the other, and a comparison.

``plan`` says which runs, ``conduct`` carries them out, ``compare`` puts what they found together.
"""
