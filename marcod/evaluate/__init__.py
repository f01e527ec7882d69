"""Evaluation of a model version on labelled images, and the threshold that follows.

``labelled`` reads such a set from CSV or the database, ``predictions`` scores it, ``results`` computes all numbers,
``tables`` and ``page`` show them, and ``calibration`` derives a new version with another temperature and threshold.
``paired`` and ``gate`` compare a candidate with the champion.
"""
