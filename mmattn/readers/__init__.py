"""Files from outside, read into media: size limits first, upright, and one clear error for what cannot be read."""

from mmattn.readers.listing import list_photos
from mmattn.readers.photo import read_photo
from mmattn.readers.sound import read_sound

__all__ = ["list_photos", "read_photo", "read_sound"]
