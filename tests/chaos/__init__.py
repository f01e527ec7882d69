"""A lab in which everything goes wrong, and the reckoning afterwards: ``python -m chaos`` and the tests' short form.

Real processes of marcod on a real database take in plates while a script with a printed seed kills them, stops the
server, fills the disk, takes shares away and damages files. At the end all faults are taken back, the work drains,
and :mod:`chaos.reckoning` compares every file on the disk with the database. Everything delivered is synthetic.

``quota`` is a disk that can be filled, ``stores`` the two databases, ``imagers`` the files and the truth about them,
``service`` marcod's processes, ``people`` what persons and their LIMS do, ``faults`` what goes wrong, ``lab`` all of
them together, ``reckoning`` the comparison, ``conduct`` how the processes bore it.
"""
