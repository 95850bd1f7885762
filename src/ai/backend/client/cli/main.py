import sys

import roost.cli.compat
from roost.cli.compat import *  # noqa: F403

sys.modules[__name__] = roost.cli.compat
