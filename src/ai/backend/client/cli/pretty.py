import sys

import roost.cli.pretty
from roost.cli.pretty import *  # noqa: F403

sys.modules[__name__] = roost.cli.pretty
