"""Watcher of the imagers' folders, which records every finished image.

``tree`` knows the file system below one source root; ``settle`` decides when a file has arrived; ``observe`` keeps
an operating-system observer alive; ``ingest`` turns paths into rows; ``folders`` decides which source a
folder is; ``loop`` runs them for ever and ``scan`` once.

Events, polls and walks only nominate paths, all through one door, :meth:`marcod.watch.settle.SettleTracker.offer`.
Identity lives in the database: everything kept in memory here may be lost at any time and costs only a second look.
No file of an imager is ever moved, renamed, deleted or opened for writing, and no image is read here at all.
"""
