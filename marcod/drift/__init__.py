"""Drift of an imager's images, and of the champion's scores of them, against a reference of the same plate ages.

``days`` keeps one row per imager and day, ``statistics`` makes it, ``comparison`` tests it, ``monitor`` raises alarms.
"""
