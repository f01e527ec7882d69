"""Synthetic crystallization drops: images whose truth is known, because they are drawn from it.

A :class:`Scene` is a value that decides one image completely; :func:`render` turns it into pixels, always the
same ones. :func:`plate_files` lists a whole export the way an imager would write it, over several inspections
in which crystals appear, grow and sometimes dissolve. Nothing here was photographed, and nothing here replaces
photographs when a model is judged.
"""

from marcod.synthetic.examples import SIZES, drop_jpeg, drop_jpeg_of
from marcod.synthetic.image import render
from marcod.synthetic.plates import PlannedFile, PlateSpec, drop_history, first_hit, plate_files, write_file
from marcod.synthetic.sampling import another_imager, random_scene
from marcod.synthetic.scene import ImagerStyle, Scene, at_age, scene_label

__all__ = [
    "SIZES",
    "ImagerStyle",
    "PlannedFile",
    "PlateSpec",
    "Scene",
    "another_imager",
    "at_age",
    "drop_history",
    "drop_jpeg",
    "drop_jpeg_of",
    "first_hit",
    "plate_files",
    "random_scene",
    "render",
    "scene_label",
    "write_file",
]
