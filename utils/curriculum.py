"""The public import path of ``PyramidCurriculum``; the code is in ``utils/pycda/curriculum.py``."""

from utils.pycda import PyramidCurriculum

__all__ = ["PyramidCurriculum"]
