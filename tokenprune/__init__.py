"""tokenprune: the same answers from a fraction of the visual tokens.

Names are listed in `__init__.pyi` and loaded when they are first used, so that importing the package costs nothing.
"""

import lazy_loader

from tokenprune.version import VERSION

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = VERSION
