"""`python -m penchant` is the command line."""

import sys

from penchant.cli.main import main

sys.exit(main())
