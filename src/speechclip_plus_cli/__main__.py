"""`python -m speechclip_plus_cli`, the same as `speechclip-plus`."""

import sys

from .main import main

sys.exit(main())
