"""mmattn: captures attention from any PyTorch model and draws it on what the model was looking at.

The doors of the library; names only, nothing heavy is imported until it is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
