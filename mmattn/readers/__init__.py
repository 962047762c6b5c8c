"""Files from outside, read into media: size limits first, upright, and one clear error for what cannot be read."""

from mmattn.readers.listing import list_photos
from mmattn.readers.photo import read_photo

__all__ = ["list_photos", "read_photo"]
