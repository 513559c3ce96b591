"""The import path that users of the method have; the method itself is ``utils/pycda/curriculum.py``."""

from utils.pycda import PyramidCurriculum

__all__ = ["PyramidCurriculum"]
