"""How good a model version is on images whose content people have named, and what follows for its threshold.

``labelled`` reads such a set from CSV or the database, ``predictions`` scores it, ``results`` makes all numbers of it,
``tables`` and ``page`` show them, and ``calibration`` derives a new version with another temperature and threshold.
"""
