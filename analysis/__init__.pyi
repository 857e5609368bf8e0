from . import caps as caps
from . import smoothing as smoothing
from .caps import *
from .smoothing import *
