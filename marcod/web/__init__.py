"""The page: plates, drops, hits and the review in a browser.

``app`` puts the routes together, ``access`` tells who asks, ``safety`` refuses what no page of ours sends, ``server``
listens. Every function that reads rows for a person is given the :class:`marcod.web.access.User` first.
"""
