"""Calibration: links measured and held against their profiles, for `cli.py calibrate`.

The way of a measurement: ``plan`` says which probes there will be, ``conduct`` carries them out
with ``datagrams`` and ``transfers``, ``figures`` and the judges make rows of what was seen.
"""
