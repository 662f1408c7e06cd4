"""``python -m petx`` is the command ``petx``."""

import sys

from petx.cli import main

sys.exit(main())
