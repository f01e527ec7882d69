"""Training of the next model, from people's labels to a decision. Scoring does not depend on it.

``trainer`` decides when, and ``runs`` carries out one run, which resumes after a kill: ``snapshot`` freezes the labels,
``data`` and ``rehearsal`` load images, ``candidate`` trains (with ``fitting``), ``calibrate`` fits temperature and
threshold, ``assess`` writes the bundle and asks the gate. Then it is promoted, or scores in ``shadow`` first.
``shipped_model`` made the shipped bundle. TensorFlow loads only with a module that trains.
"""
