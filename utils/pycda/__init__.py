"""The method. This folder needs only torch and uses relative imports, so a copy of it works anywhere."""

from .curriculum import PyramidCurriculum

__all__ = ["PyramidCurriculum"]
