"""The method. The folder needs torch alone and imports relatively, so that a copy of it works anywhere."""

from .curriculum import PyramidCurriculum

__all__ = ["PyramidCurriculum"]
