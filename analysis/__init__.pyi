from . import bottleneck as bottleneck
from . import calibration as calibration
from . import caps as caps
from . import claims as claims
from . import command as command
from . import diagnostics as diagnostics
from . import head_shapes as head_shapes
from . import heads as heads
from . import instruction as instruction
from . import lab as lab
from . import norm_ball as norm_ball
from . import notebook as notebook
from . import plots as plots
from . import random_energy as random_energy
from . import response as response
from . import smoothing as smoothing
from . import study as study
from . import teachers as teachers
from .bottleneck import *
from .calibration import *
from .caps import *
from .diagnostics import *
from .head_shapes import *
from .heads import *
from .norm_ball import *
from .random_energy import *
from .response import *
from .smoothing import *
from .teachers import *
