from . import bottleneck as bottleneck
from . import calibration as calibration
from . import caps as caps
from . import random_energy as random_energy
from . import records as records
from . import smoothing as smoothing
from . import study as study
from . import sweep as sweep
from . import teachers as teachers
from .bottleneck import *
from .calibration import *
from .caps import *
from .random_energy import *
from .smoothing import *
from .teachers import *
