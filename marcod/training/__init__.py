"""Making the next model. Hides everything between people's labels and a verdict; scoring knows nothing of it.

``trainer`` decides when, ``runs`` takes the steps of one run, each of which a kill leaves whole: ``material`` (images
and the ``base`` set) > ``candidate`` (``adapt``, ``fitting`` by one of ``recipes`` on ``images``, ``calibrated``,
``doubts`` about labels) > ``judgement`` (the bundle at the gate) > promotion, or ``shadow`` first. ``rendered`` made
the shipped bundle. Nothing here loads TensorFlow before a module that trains is imported.
"""
