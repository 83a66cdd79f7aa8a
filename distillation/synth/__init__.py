"""Scenes with exact masks without end: drawn ones, and real objects pasted onto real photos.

They teach the decoder where a box, an edge, a part and a whole are, before and between labelled
photos. NumPy, Pillow and OpenCV only, some milliseconds a scene on one core; the same ``rng`` state
gives the same scene. ``procedural.py`` and ``paste.py`` are the two ways in.
"""

from distillation.synth.canvas import Scene
from distillation.synth.paste import Cutout, CutoutLibrary, load_cutouts, paste_scene
from distillation.synth.procedural import procedural_scene

__all__ = ["Cutout", "CutoutLibrary", "Scene", "load_cutouts", "paste_scene", "procedural_scene"]
