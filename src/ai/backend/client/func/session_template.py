import sys

import roost.client.func.session_template
from roost.client.func.session_template import *  # noqa: F403

sys.modules[__name__] = roost.client.func.session_template
